"""From a job to its planner: sizes of clips, what the user has decided, and bytes of the blocks."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.memory.master import streamed_bytes
from wan_train.core.plan.plan import Bucket
from wan_train.core.plan.planner import Pins
from wan_train.core.plan.planning import (
    arithmetic,
    buckets_of,
    make_planner,
    may_use_graphs,
    num_batch_sizes,
    pins_of,
    plan_of,
    stored_block_bytes,
    with_choice,
)
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.wan.checkpoint import inspect, load_transformer
from wan_train.core.wan.config import WanConfig
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


def test_the_plan_of_a_job(job: Job):
    plan = plan_of(replace(job, memory=MemoryOptions(streamed_blocks=1, compile="static")), torch.bfloat16)
    assert (plan.precision, plan.streamed_blocks, plan.compile, plan.ffn_pieces) == ("bf16", 1, "static", 1)
    assert plan_of(replace(job, memory=MemoryOptions(ffn_pieces=3)), torch.bfloat16).ffn_pieces == 3
    fp8 = replace(job, model=replace(job.model, precision="fp8"))
    assert plan_of(fp8, torch.bfloat16).precision == "fp8"


def test_what_is_left_at_its_default_is_not_pinned():
    assert pins_of(MemoryOptions()) == Pins()
    assert pins_of(MemoryOptions(checkpointing=False)) == Pins(checkpointing=False)
    assert pins_of(MemoryOptions(keep_linears=2, compile="off")) == Pins(keep_linears=2)
    assert pins_of(MemoryOptions(ffn_pieces=3)) == Pins(ffn_pieces=3)
    some = MemoryOptions(streamed_blocks=4, mapped_blocks=3)
    assert pins_of(some) == Pins(streamed_blocks=4, mapped_blocks=3)
    chosen = MemoryOptions(keep_attention=3, streamed_blocks=2, stream_from="mapped", offload_inputs=True)
    assert pins_of(chosen) == Pins(keep_attention=3, streamed_blocks=2, stream_from="mapped", offload_inputs=True)


def test_the_planner_knows_the_job_and_its_choice_becomes_a_job(job: Job):
    memory = MemoryOptions(attention="auto", budget_gb=2.0)
    job = replace(job, memory=memory, adapter=replace(job.adapter, dropout=0.1))
    planner = make_planner(job, inspect(job.model.path), CPU, CARD)
    assert planner.card.free == 2 * 2**30 < CARD.free
    assert planner.task.sizes.num_layers == SIZE.num_layers
    assert (planner.task.trained.rank, planner.task.trained.dropout, planner.task.element_size) == (4, True, 4)
    choice = planner.describe(replace(planner.plan, streamed_blocks=1, stream_from="mapped"))
    decided = replace(memory, compile="off", streamed_blocks=1, stream_from="mapped")  # it is not compiled on the CPU
    assert with_choice(job, choice).memory == decided
    some = planner.describe(replace(planner.plan, streamed_blocks=2, mapped_blocks=1))
    assert with_choice(job, some).memory == replace(decided, streamed_blocks=2, stream_from="pinned", mapped_blocks=1)
    assert plan_of(with_choice(job, some), torch.float32).mapped_blocks == 1
    in_pieces = planner.describe(replace(planner.plan, ffn_pieces=4))
    assert with_choice(job, in_pieces).memory.ffn_pieces == 4


def test_smaller_last_batches_are_sizes_of_their_own(job: Job):
    sample = job.data.samples[0]

    def count(number, repeats=1, **options):
        samples = tuple(replace(sample, shape=(16, 1, 4, 2 * n), repeats=repeats) for n in range(1, number + 1))
        data, loop = replace(job.data, samples=samples), replace(job.loop, **options)
        return num_batch_sizes(replace(job, data=data, loop=loop))

    assert [count(number) for number in (1, 8, 9)] == [1, 8, 9]
    assert count(5, repeats=3, batch_size=2) == 10
    assert count(5, repeats=4, batch_size=2) == 5


def test_cuda_graphs_are_for_few_sizes_of_small_batches(job: Job):
    sample, cuda, large = job.data.samples[0], torch.device("cuda"), WanConfig()

    def may(*shapes, device=cuda, sizes=large, batch_size=1, **options):
        samples = tuple(replace(sample, shape=shape, repeats=batch_size) for shape in shapes)
        loop, memory = replace(job.loop, batch_size=batch_size), MemoryOptions(**options)
        data = replace(job.data, samples=samples)
        return may_use_graphs(replace(job, data=data, loop=loop, memory=memory), sizes, device)

    image, two, clip = (16, 1, 128, 128), (16, 2, 128, 128), (16, 9, 60, 104)
    assert may(image)
    assert may(image, two)
    assert may(image, batch_size=2)
    assert not may(image, clip)  # which needs the memory itself
    assert not may(two, batch_size=2)
    assert may(image, clip, sizes=WanConfig(dim=1536))
    assert not may(image, device=CPU)
    assert not may(image, cuda_graphs="off")
    assert not may(*((16, 1, 8, 2 * n) for n in range(1, 10)))
    dropping = replace(job, adapter=replace(job.adapter, dropout=0.1))
    assert may_use_graphs(job, large, cuda)
    assert not may_use_graphs(dropping, large, cuda)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16", "fp8", "int8", "ara"])
def test_arithmetic(precision):
    named = {"bf16": torch.bfloat16, "fp16": torch.float16}
    assert arithmetic(precision, CPU) == named.get(precision, torch.float32)


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
    assert make_planner(job, info, CPU, CARD).task.stored_block_bytes == stored_block_bytes(info, torch.float32)
    assert stored_block_bytes(inspect(job.model.path), torch.float32) is None
