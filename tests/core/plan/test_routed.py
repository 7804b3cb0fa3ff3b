"""What TREAD saves, predicted, against what the allocator counts on the CPU: a forward and backward of a whole model."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.flow.random import stream
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.recompute import Kept, mark_kept, with_selective_recompute
from wan_train.core.objective.tread import kept_of
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.sizes import Trained
from wan_train.core.routes import kept_share, read_routes, routes_among
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import call_block
from wan_train.tests.core.plan.test_estimate import CARD, GRID, make, peak_bytes

LAYERS, TRAINED = 6, Trained(rank=4)
CONFIG = WanConfig(dim=256, ffn_dim=688, num_heads=2, num_layers=LAYERS, text_dim=16)
BUCKET = Bucket((16, GRID[0], 2 * GRID[1], 2 * GRID[2]))


def measured(plan: Plan, routes: str) -> int:
    """The peak of what a forward and backward make."""
    model = make(CONFIG, torch.float32, TRAINED)
    model.routes = routes_among(read_routes(routes), LAYERS)
    kept = None
    if routes:
        size = (GRID[0], GRID[1] * GRID[2])
        drawn = [kept_of(route, size, False, stream(0, "route", i)) for i, route in enumerate(model.routes)]
        kept = torch.cat(drawn)[None]
    if plan.keep_attention:
        keeps = Kept(plan.keep_attention, plan.keep_linears)
        mark_kept(list(model.blocks), keeps)
        model.run_block = with_selective_recompute(call_block, list(model.blocks), keeps, width=CONFIG.dim)
    elif plan.checkpointing:
        model.run_block = with_checkpointing(call_block)
    latents = torch.randn(1, *BUCKET.shape)
    context = torch.randn(1, 512, CONFIG.text_dim)
    return peak_bytes(lambda: model(latents, torch.tensor([500.0]), context, kept_tokens=kept).sum().backward())


def predicted(plan: Plan, routes: str) -> int:
    seen = tuple(kept_share(read_routes(routes), LAYERS)) if routes else ()
    task = Task(sizes=CONFIG, trained=TRAINED, element_size=4, seen=seen)
    return estimate(task, BUCKET, plan, CARD).vram


PLAIN = Plan(precision="fp32")


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "plan",
    [PLAIN, replace(PLAIN, keep_attention=5), replace(PLAIN, checkpointing=False)],
    ids=["checkpointing", "keeps attention", "keeps all"],
)
@pytest.mark.parametrize("routes", ["1 to -2: 0.5", "2 to -1: 0.75", "1 to 1: 0.5, 3 to 4: 0.75"])
def test_what_routes_save_is_what_is_counted(plan, routes):
    whole = measured(plan, "")
    saved = whole - measured(plan, routes)
    said = predicted(plan, "") - predicted(plan, routes)
    assert saved > 0
    assert said == pytest.approx(saved, rel=0.06)


def test_a_route_of_all_tokens_is_none():
    for plan in (PLAIN, replace(PLAIN, keep_attention=3), replace(PLAIN, keep_attention=3, keep_linears=2),
                 replace(PLAIN, split_blocks=True, keep_attention=3), replace(PLAIN, offload_inputs=True),
                 replace(PLAIN, checkpointing=False)):  # fmt: skip
        task = Task(sizes=CONFIG, trained=TRAINED, element_size=4)
        for seen in (((LAYERS, 1.0),), ((2, 1.0), (3, 1.0), (1, 1.0))):
            assert estimate(replace(task, seen=seen), BUCKET, plan, CARD) == estimate(task, BUCKET, plan, CARD), plan
