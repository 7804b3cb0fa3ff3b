"""What makes a GPU's libraries ready does so with what a run has, and changes nothing of it."""

import torch
from wan_train.core.plan.decision import decide
from wan_train.core.train.checks import check_job
from wan_train.core.train.warm_up import WarmUp, use_once


def test_it_runs_and_draws_nothing(job):
    decision = decide(job, check_job(job), torch.device("cpu"))
    before = torch.get_rng_state()
    use_once(decision, decision.info.config)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_fails_is_left_to_the_step_that_needs_it(job, caplog):
    caplog.set_level("INFO")
    decision = decide(job, check_job(job), torch.device("cpu"))
    WarmUp(decision, None).wait()
    assert "could not be made ready" in caplog.text
