"""What plans share that compute in one way: each is predicted as if it alone had been looked at."""

from dataclasses import replace

import pytest
from wan_train.core.memory.recompute import Kept
from wan_train.core.objective.passes import Passes
from wan_train.core.plan.card import Correction
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Gpus, Plan, Task, keeping, way_of
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.sizes import Trained
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

SMALL = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=6)
IMAGE, CLIP = Bucket((16, 1, 64, 64), share=0.7), Bucket((16, 9, 60, 104), batch=2, share=0.3)
TWO = Passes(("forward without gradient", "forward", "forward", "backward"))


def planner(mode="kernels", precision="fp8", shards=1, **task):
    return Planner(
        task=Task(sizes=SMALL, **task),
        buckets=[IMAGE, CLIP],
        card=replace(CARD, free=5 * 2**30, link=50e9),
        plan=Plan(precision=precision, compile=mode, shards=shards),
        corrections={"kernels": Correction(1.1, 0.9)},
    )


@pytest.mark.parametrize(
    "these",
    [
        pytest.param(planner(graphs=True), id="kernels and graphs"),
        pytest.param(planner("off", "bf16", trained=Trained(rank=128, optimizer="adamw8bit")), id="eager"),
        pytest.param(planner("static", "fp8_compute", passes=TWO, accumulation=4), id="compiled, two forwards"),
        pytest.param(planner(gpus=Gpus(4, 2, 4), shards=4), id="four GPUs"),
        pytest.param(planner(seen=((2, 1.0), (4, 0.5)), features=768), id="TREAD and CREPA"),
    ],
)
def test_a_plan_is_predicted_as_if_alone(these):
    """Also after all others have been looked at: nothing of one plan gets into another."""
    found = these.choose()
    assert found is not None
    plans = list(these.plans())
    assert len({way_of(these.task, plan) for plan in plans}) < len(plans) / 6
    for plan in plans[::11]:
        for kept in (Kept(), Kept(3, 2)) if plan.checkpointing else (Kept(),):
            kept = Kept(kept.attention, 0 if plan.split_blocks else kept.linears)
            of_plan = keeping(plan, kept)
            described, correction = these.describe(of_plan), these.correction_of(plan)
            for bucket in these.buckets:
                alone = estimate(these.task, bucket, of_plan, these.card, correction)
                assert described.estimates[bucket] == alone
    for bucket, known in found.estimates.items():
        kept = found.kept[bucket.batch * bucket.shape[1] * bucket.shape[2] * bucket.shape[3] // 4]
        plan = keeping(found.plan, kept)
        assert known == estimate(these.task, bucket, plan, these.card, these.correction_of(plan))


def test_what_fits_is_what_is_chosen_of():
    """`fits` and `leanest` look at memory alone, `choose` at all."""
    for free in (0.5, 1.5, 3):
        these = planner("off", "bf16")
        these = replace(these, card=replace(these.card, free=int(free * 2**30)))
        assert these.fits() == (these.choose() is not None)
        every = [these.describe(plan) for plan in these.plans()]
        least = these.leanest()
        assert least.vram == min(choice.vram for choice in every)
        assert least.seconds == min(choice.seconds for choice in every if choice.vram == least.vram)
