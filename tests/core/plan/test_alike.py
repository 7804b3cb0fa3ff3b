"""GPUs of different kinds: they compute in one dtype and run their blocks in one way, or the run is refused with a sentence."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.parallel.world import ALONE
from wan_train.core.plan.alike import alike
from wan_train.core.plan.decision import Decision
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train import run_plan
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.team_runs import folder_of, run, spread, told
from wan_train.tests.ranks import RankError

CPU = torch.device("cpu")


def decided(world, path, of_ranks):
    """What the ranks come to, each with its own: modes, dtype, attention, warnings."""
    modes, dtype, attention, warnings = of_ranks[world.rank]
    own = Decision(
        info=inspect(path), device=CPU, dtype=getattr(torch, dtype), modes=modes, attention=attention, warnings=warnings
    )
    try:
        found = alike(own, world, "auto")
    except ConfigError as error:
        return str(error)
    return found.modes, found.attention, found.warnings


def test_blocks_run_as_all_of_them_can_and_each_attends_in_its_own_way(ranks, job):
    new, old = (("kernels", "off"), "bfloat16", "fa4", ()), (("off",), "bfloat16", "cudnn", ("No kernels here.",))
    assert ranks(2)(decided, job.model.path, (new, old)) == [
        (("off",), "fa4", ("rank 1 (cpu): No kernels here.",)),
        (("off",), "cudnn", ("No kernels here.",)),
    ]
    assert ranks(2)(decided, job.model.path, (new, new)) == [(("kernels", "off"), "fa4", ())] * 2
    compiled = (("static",), "bfloat16", "", ())
    assert [modes for modes, *_ in ranks(2)(decided, job.model.path, (compiled, old))] == [("off",)] * 2


@pytest.mark.parametrize(("dtype", "name", "advised"), [("float16", "fp16", "fp16"), ("float32", "fp32", "fp32")])
def test_those_that_compute_in_different_dtypes_are_refused_by_all(ranks, job, dtype, name, advised):
    new, old = (("off",), "bfloat16", "", ()), (("off",), dtype, "", ())
    found = ranks(2)(decided, job.model.path, (new, old))
    sentence = (
        f"with precision auto, rank 0 (cpu) computes in bf16 and rank 1 (cpu) in {name}, and GPUs that train together must "
        f"compute in the same dtype: set precision to {advised}, which both have, or leave one of these GPUs out."
    )
    assert found == [sentence] * 2


def test_one_gpu_decides_alone(job):
    own = Decision(info=inspect(job.model.path), device=CPU, dtype=torch.float32, modes=("static",))
    assert alike(own, ALONE, "auto") is own


def unlike(world, path, changes):
    decide = run_plan.decide
    run_plan.decide = lambda *args, **options: replace(decide(*args, **options), **(changes if world.rank else {}))
    try:
        return run(world, path)
    finally:
        run_plan.decide = decide


def test_a_run_over_unlike_gpus(ranks, job, tmp_path):
    job = spread(replace(job, memory=MemoryOptions(budget_gb=3.0)), 2, steps=2)
    folder = folder_of(tmp_path, "run", job)
    assert {ended for ended, _ in ranks(2)(unlike, folder.path, {"warnings": ("No kernels here.",)})} == {"finished"}
    assert [event["message"] for event in told(folder, "warning")].count("rank 1 (cpu): No kernels here.") == 1
    other = folder_of(tmp_path, "other", job)
    with pytest.raises(RankError, match=r"rank 0 \(cpu\) computes in fp32 and rank 1 \(cpu\) in bf16"):
        ranks(2)(unlike, other.path, {"dtype": torch.bfloat16})
    assert not told(other, "step")
