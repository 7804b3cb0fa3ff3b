"""Adaptive output preservation: the weight by an arithmetic of its own, in a step, and in a checkpoint."""

import math
from dataclasses import replace

import pytest
import torch
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train.adaptive import AdaptiveWeight, adaptive_weight
from wan_train.tests.core.objective.test_objective import trained
from wan_train.tests.core.train.helpers import make_trainer, with_class

CPU = torch.device("cpu")
NAME = "output_preservation"
GOOD, BAD = torch.tensor(True), torch.tensor(False)


def weights_by_hand(values, *, weight, target):
    """The weight after each value, in plain numbers: mean <- .95 mean + .05 value; w <- w e^(.1 (mean / target - 1))."""
    mean, least, most, found = None, weight / 100, weight * 100, []
    for value in values:
        mean = value if mean is None else 0.95 * mean + 0.05 * value
        by = min(2.0, max(-2.0, 0.1 * (mean / target - 1)))
        weight = min(most, max(least, weight * math.e**by))
        found.append(weight)
    return found


def weight_of(adaptive):
    from wan_train.core.objective.terms import Term

    (other, term) = adaptive.weighed([Term("flow", torch.ones(1), 3.0), Term(NAME, torch.ones(1), 7.0)])
    assert other.weight == 3.0
    return float(term.weight)


@pytest.mark.parametrize(
    "values",
    [[0.02, 0.03, 0.01, 0.5, 0.001], [0.01] * 5, [1e3] * 6, [0.0] * 200, [0.01 * 1.2**n for n in range(40)]],
    ids=["mixed", "at the target", "far above", "none", "rising"],
)
def test_the_weight_follows_the_distance_to_the_target(values):
    adaptive, found = AdaptiveWeight(NAME, 0.5, 0.01, CPU), []
    assert weight_of(adaptive) == 0.5
    for value in values:
        adaptive.follow(torch.tensor(value), GOOD)
        found.append(weight_of(adaptive))
    assert found == pytest.approx(weights_by_hand(values, weight=0.5, target=0.01), rel=1e-4)


def test_its_direction_and_its_limits():
    above, below = AdaptiveWeight(NAME, 1.0, 0.1, CPU), AdaptiveWeight(NAME, 1.0, 0.1, CPU)
    for _ in range(400):
        above.follow(torch.tensor(0.2), GOOD)
        below.follow(torch.tensor(0.05), GOOD)
    assert weight_of(above) == pytest.approx(100.0)
    assert weight_of(below) == pytest.approx(0.01)


def test_a_step_that_does_not_count_changes_nothing():
    adaptive = AdaptiveWeight(NAME, 1.0, 0.1, CPU)
    adaptive.follow(torch.tensor(0.3), GOOD)
    before = adaptive.state_dict()
    adaptive.follow(torch.tensor(0.9), BAD)  # the update was not made
    adaptive.follow(torch.tensor(math.nan), GOOD)  # no rank had the term
    adaptive.follow(torch.tensor(math.inf), GOOD)
    adaptive.follow(None, GOOD)
    assert adaptive.state_dict() == before


@pytest.fixture
def job(job, tmp_path):
    samples = tuple(with_class(tmp_path, sample) for sample in job.data.samples)
    options = RegularizerOptions(output_preservation=0.5, preservation_target=0.05)
    return replace(job, data=replace(job.data, samples=samples), regularizers=options)


@pytest.mark.parametrize("single_pass", [False, True])
def test_a_step_takes_the_weight_that_the_steps_before_have_made(job, single_pass):
    job = replace(job, regularizers=replace(job.regularizers, single_pass=single_pass))
    trainer = trained(make_trainer(job))
    reports = [trainer.train_step().read() for _ in range(4)]
    values = [report.terms[NAME] for report in reports]
    weights = [0.5, *weights_by_hand(values, weight=0.5, target=0.05)]
    for report, weight in zip(reports, weights, strict=False):
        assert report.loss == pytest.approx(report.terms["flow"] + weight * report.terms[NAME], rel=1e-5)
    assert len({round(weight, 6) for weight in weights}) == 5


def test_without_a_target_there_is_none(job):
    assert adaptive_weight(replace(job, regularizers=RegularizerOptions(output_preservation=0.5)), CPU) is None
    assert adaptive_weight(replace(job, regularizers=RegularizerOptions(preservation_target=0.5)), CPU) is None


def test_its_state_comes_back_and_another_is_refused():
    one, other = AdaptiveWeight(NAME, 1.0, 0.1, CPU), AdaptiveWeight(NAME, 1.0, 0.1, CPU)
    other.check_state(one.state_dict())  # before the first step
    for value in (0.3, 0.2):
        one.follow(torch.tensor(value), GOOD)
    state = one.state_dict()
    other.check_state(state)
    other.load_state_dict(state)
    for each in (one, other):
        each.follow(torch.tensor(0.05), GOOD)
    assert weight_of(one) == weight_of(other)
    for wrong in (None, {}, {**state, "weight": torch.tensor(1e6)}, {**state, "mean": torch.tensor(math.inf)}):
        with pytest.raises(ValueError, match="the weight of output preservation"):
            one.check_state(wrong)
    with pytest.raises(ValueError, match="which it can't be"):
        one.check_state({**state, "weight": torch.tensor(math.nan)})
