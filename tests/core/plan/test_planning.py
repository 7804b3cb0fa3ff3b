"""From a job to its planner: sizes of clips, what the user has decided, and bytes of the blocks."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.memory.master import streamed_bytes
from wan_train.core.plan.decision import Decision, buckets_of, decide
from wan_train.core.plan.plan import Bucket, Plan
from wan_train.core.plan.planning import make_planner, plan_of, stored_block_bytes, with_plan
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.plain import PLAIN, chosen
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.plan.test_estimate import CARD
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.wan.gguf.helpers import WAN, plain, write_gguf
from wan_train.tools.miniature import dit_metadata, wan_dit

CPU = torch.device("cpu")


def test_sizes_of_clips_and_their_batches(job: Job):
    loop = replace(job.loop, batch_size=4)
    assert buckets_of(replace(job, loop=loop)) == [Bucket((16, 2, 4, 4), 2, 1.0), Bucket((16, 1, 4, 6), 1, 1.0)]
    alone = replace(loop, token_budget=8)
    assert buckets_of(replace(job, loop=alone))[0] == Bucket((16, 2, 4, 4), 1, 2.0)


def of(job: Job, **memory) -> tuple[Job, Decision]:
    """The job with these memory options, and what was decided for it on the CPU."""
    job = replace(job, memory=MemoryOptions(**memory))
    return job, decide(job, inspect(job.model.path), CPU)


def test_the_plan_of_a_job(job: Job):
    decision = of(job)[1]
    compiled = replace(decision, dtype=torch.bfloat16, modes=("static",))
    plan = plan_of(replace(job, memory=MemoryOptions(streamed_blocks=1)), compiled)
    assert (plan.precision, plan.streamed_blocks, plan.compile, plan.ffn_pieces) == ("bf16", 1, "static", 1)
    assert plan_of(replace(job, memory=MemoryOptions(ffn_pieces=3)), decision).ffn_pieces == 3
    fp8 = replace(job, model=replace(job.model, precision="fp8"))
    assert plan_of(fp8, decision).precision == "fp8"


def test_what_nobody_has_chosen_is_plain(job: Job):
    assert plan_of(*of(job)) == Plan(precision="fp32")
    assert {name: getattr(Plan(), name) for name in PLAIN} == PLAIN
    assert all(getattr(MemoryOptions(), name) is None for name in PLAIN)


def test_a_chosen_plain_value_is_a_choice(job: Job):
    job, decision = of(job, streamed_blocks=0, checkpointing=True, budget_gb=3.0)
    planner = make_planner(job, decision, replace(CARD, free=2**40))
    assert chosen(planner.options) == {"checkpointing": True, "streamed_blocks": 0}
    assert {(plan.streamed_blocks, plan.checkpointing) for plan in planner.plans()} == {(0, True)}
    free = make_planner(*of(job), CARD)
    assert {plan.checkpointing for plan in free.plans()} == {True, False}
    assert max(plan.streamed_blocks for plan in free.plans()) == SIZE.num_layers


def test_the_planner_knows_the_job_and_its_choice_becomes_a_job(job: Job):
    job, decision = of(replace(job, adapter=replace(job.adapter, dropout=0.1)), attention="auto", budget_gb=2.0)
    planner = make_planner(job, decision, CARD)
    assert planner.card.free == 2 * 2**30 < CARD.free
    assert planner.task.sizes.num_layers == SIZE.num_layers
    assert (planner.task.trained.rank, planner.task.trained.dropout, planner.task.element_size) == (4, True, 4)
    choice = planner.describe(replace(planner.plan, streamed_blocks=1, stream_from="mapped"))
    memory = with_plan(job, choice.plan).memory
    assert chosen(memory) == {**PLAIN, "streamed_blocks": 1, "stream_from": "mapped"}
    assert (memory.attention, memory.budget_gb, memory.compile) == ("auto", 2.0, "off")  # not compiled on the CPU
    some = replace(planner.plan, streamed_blocks=2, mapped_blocks=1, ffn_pieces=4)
    again = with_plan(job, some)
    assert chosen(again.memory) == {**PLAIN, "streamed_blocks": 2, "mapped_blocks": 1, "ffn_pieces": 4}
    assert plan_of(again, decision) == some


def test_blocks_of_a_gguf_file_are_counted_before_it_is_loaded(tmp_path, job: Job):
    def stored(name, values):
        if name.startswith("blocks.") and values.dim() == 2:
            return "Q8_0", tuple(values.shape), bytes(values.numel() // 32 * 34)
        return plain(values)

    tensors = {name: stored(name, values) for name, values in wan_dit(SIZE, seed=0).items()}
    path = write_gguf(tmp_path / "mini.gguf", tensors, {**WAN, **dit_metadata(SIZE)})
    info = inspect(path)
    for dtype in (torch.float32, torch.bfloat16):
        model = load_transformer(info, dtype=dtype, device="cpu")
        largest = max(map(streamed_bytes, model.blocks))
        assert stored_block_bytes(info, dtype) == pytest.approx(largest, abs=256)  # the last one's rest is not filled
    planner = make_planner(job, decide(job, info, CPU), CARD)
    assert planner.task.stored_block_bytes == stored_block_bytes(info, torch.float32)
    assert stored_block_bytes(inspect(job.model.path), torch.float32) is None
