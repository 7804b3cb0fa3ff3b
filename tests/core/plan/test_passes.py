"""What the planner makes of an objective's forwards and backwards."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.objective.objective import FlowMatching, Sum
from wan_train.core.objective.passes import ONE_FORWARD, Passes
from wan_train.core.objective.regularizers import BlankPreservation
from wan_train.core.plan import decision, planning
from wan_train.core.plan.decision import decide, may_use_graphs
from wan_train.core.plan.estimate import _weights_again, estimate
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.planning import make_planner
from wan_train.core.plan.sizes import Trained, rest_bytes, working_bytes
from wan_train.core.settings.loss import LossOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.memory.helpers import CPU
from wan_train.tests.core.plan.test_estimate import CARD

TWO_TERMS = Sum(FlowMatching(LossOptions()), BlankPreservation(1.0)).passes
WAITING = Passes(("forward", "forward", "backward"))
BUCKET = Bucket((16, 21, 60, 104))
PLANS = {
    "checkpointing": Plan(),
    "all kept": Plan(checkpointing=False),
    "kernels": Plan(compile="kernels", checkpointing=False),
    "some kept": Plan(keep_attention=20, keep_linears=4),
    "offloaded": Plan(offload_inputs=True),
    "streamed": Plan(streamed_blocks=30),
}


@pytest.fixture(params=PLANS.values(), ids=PLANS.keys())
def plan(request):
    return request.param


def of(passes, plan):
    return estimate(Task(sizes=WanConfig(), passes=passes), BUCKET, plan, CARD)


def test_forwards_and_backwards_take_their_time(plan):
    plain = of(ONE_FORWARD, plan).seconds
    backward_too = of(ONE_FORWARD + ONE_FORWARD, plan).seconds
    assert backward_too == pytest.approx(2 * plain, rel=1e-3)  # but for the one update
    two_terms = of(TWO_TERMS, plan).seconds
    assert backward_too < two_terms < 1.5 * backward_too
    assert of(WAITING, plan).seconds == pytest.approx(backward_too, rel=1e-9)


def test_terms_one_after_the_other_take_the_memory_of_one(plan):
    assert (of(TWO_TERMS, plan).vram, of(TWO_TERMS, plan).ram) == (
        of(ONE_FORWARD, plan).vram,
        of(ONE_FORWARD, plan).ram,
    )


def test_a_forward_that_waits_holds_what_its_backward_needs(plan):
    plain, waiting = of(ONE_FORWARD, plan), of(WAITING, plan)
    held = WanConfig().num_layers * 21 * 30 * 52 * WanConfig().dim * 2  # the inputs of the blocks, in bf16
    if plan.offload_inputs:
        assert 0 < waiting.vram - plain.vram < held / 10
        assert waiting.ram - plain.ram > 0.95 * held
    else:
        assert waiting.vram - plain.vram >= held
        assert waiting.ram == plain.ram


def test_a_forward_without_gradient_has_memory_of_its_own_beside_graphs():
    task = Task(sizes=WanConfig(), graphs=True)
    assert (
        estimate(replace(task, passes=TWO_TERMS), BUCKET, Plan(), CARD).vram > estimate(task, BUCKET, Plan(), CARD).vram
    )


@pytest.mark.parametrize(("passes", "expected"), [(TWO_TERMS, True), (WAITING, False)])
def test_the_jobs_objective_is_planned(job, monkeypatch, passes, expected):
    found = decide(job, inspect(job.model.path), CPU)
    assert make_planner(job, found, CARD).task.passes == ONE_FORWARD
    for module in (planning, decision):
        monkeypatch.setattr(module, "objective_of", lambda _job: FlowMatching(LossOptions(), passes=passes))
    assert make_planner(job, found, CARD).task.passes == passes
    assert may_use_graphs(job, WanConfig(), torch.device("cuda")) == expected


def test_beside_graphs_a_forward_widens_the_largest_weight_outside_of_the_blocks():
    """The time's projection, of 16 bits in the file, is fp32 for its product: 600 MiB at 14B's width."""
    task = Task(sizes=WanConfig(), graphs=True, passes=TWO_TERMS)
    small = (16, 1, 64, 64)
    wide, narrow = (
        estimate(replace(task, rest_bytes=rest), Bucket(small), Plan(compile="kernels"), CARD).vram - rest
        for rest in (rest_bytes(WanConfig()), rest_bytes(WanConfig()) // 2)
    )
    assert 400 * 2**20 < narrow - wide < 600 * 2**20  # of which a block's forward had counted a part


def test_without_much_else_the_widened_weight_is_the_peak():
    tiny = (16, 1, 8, 8)
    task, plan = Task(sizes=WanConfig(), rest_bytes=rest_bytes(WanConfig()) // 2), Plan(compile="kernels")
    found = estimate(task, Bucket(tiny), plan, CARD)
    assert found.vram - found.exact_vram >= 600 * 2**20


def weights_again(precision, kind="lora", **plan):
    task = Task(sizes=WanConfig(), trained=Trained(rank=16, adapter=kind))
    return _weights_again(task, Plan(precision=precision, **plan)) / LARGEST


LARGEST = WanConfig().dim * WanConfig().ffn_dim


@pytest.mark.parametrize(
    ("precision", "plain", "dora"),
    [("bf16", 0, 0), ("fp8", 2, 2 + 4), ("int8", 2, 2 + 4), ("fp8_compute", 1, 1 + 4)],
)
def test_dora_looks_at_a_weight_in_fp32_beside_the_matrix_of_all_layers(precision, plain, dora):
    """Bytes for each number of the largest weight."""
    found = [weights_again(precision, kind, compile="kernels") for kind in ("lora", "loha", "dora")]
    assert found == [plain, plain, dora]


def test_the_adapters_large_pieces_leave_holes():
    tasks = [Task(sizes=WanConfig(), trained=Trained(rank=16, adapter=kind)) for kind in ("lora", "loha")]
    plain, loha = (estimate(task, Bucket((16, 1, 64, 64)), Plan(compile="kernels"), CARD) for task in tasks)
    piece = working_bytes(WanConfig(), tasks[1].trained, 2)
    assert loha.vram - loha.exact_vram - (plain.vram - plain.exact_vram) > 1.2 * piece
