"""A job whose base is spread over the ranks, or swapped from memory that they share: from its file to the gradients."""

import gc
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.master import BlockMaster
from wan_train.core.memory.sharded import ShardedMaster
from wan_train.core.memory.shared import SharedMaster
from wan_train.core.parallel.world import World
from wan_train.core.plan.card import measure_card
from wan_train.core.plan.decision import decide
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import allows_graphs
from wan_train.core.plan.planning import make_planner, plan_of, with_plan
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.train.checks import check_job
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.features import apply_features, make_masters
from wan_train.core.train.prepare import prepare
from wan_train.core.train.run_plan import RunPlan
from wan_train.core.wan import loading
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.gguf import open_header
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import assert_same, step
from wan_train.tests.core.train.test_loading import large_job  # noqa: F401  # a fixture
from wan_train.tests.ranks import Ranks

CPU = torch.device("cpu")
SHARDED = ParallelOptions(base="sharded")
SHAPES = ((1, 16, 2, 4, 4), (2, 16, 1, 4, 6))


def steps(prepared):
    prepared.model.train()
    for number, parameter in enumerate(prepared.parameters):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 8
    return [tensor for seed, shape in enumerate(SHAPES) for tensor in step(prepared.model, shape, seed)]


def prepared_alike(world, job, scratch):
    """Kinds of the masters, once the steps have been found to be the same."""
    plain = prepare(replace(job, parallel=ParallelOptions(), memory=MemoryOptions()), CPU)
    spread = prepare(job, CPU, scratch=scratch, world=world)
    assert_same(steps(spread), steps(plain))
    spread.features.reset()
    spread.features.close()
    return [type(master) for _, master in sorted(spread.features.streamer.masters.items())]


@pytest.mark.grid(3)
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_every_adapter_trains_on_a_sharded_base(ranks, job: Job, tmp_path, kind):
    job = replace(job, parallel=SHARDED, adapter=replace(job.adapter, kind=kind))
    assert ranks(2)(prepared_alike, job, tmp_path) == [[ShardedMaster] * 2] * 2


@pytest.mark.grid(4)
@pytest.mark.parametrize(
    ("precision", "memory", "found"),
    [
        ("bf16", {}, [ShardedMaster] * 2),
        ("fp8", {"offload_inputs": True}, [ShardedMaster] * 2),
        ("int8", {"streamed_blocks": 1, "split_blocks": True}, [ShardedMaster, SharedMaster]),
        ("fp32", {"streamed_blocks": 1, "stream_from": "mapped"}, [ShardedMaster, BlockMaster]),
        ("nf4", {"streamed_blocks": 2, "stream_from": "pageable"}, [SharedMaster] * 2),
        ("fp32", {"keep_linears": 1, "attention": "default"}, [ShardedMaster] * 2),
        ("fp8", {"streamed_blocks": 2}, [SharedMaster] * 2),
        ("int4_svd", {"streamed_blocks": 2}, [SharedMaster] * 2),
        ("fp8_compute", {"streamed_blocks": 2}, [SharedMaster] * 2),
    ],
    ids=str,
)
def test_with_other_precisions_and_memory_features(ranks, job: Job, tmp_path, precision, memory, found):
    job = replace(job, parallel=SHARDED, memory=MemoryOptions(**memory), model=replace(job.model, precision=precision))
    assert ranks(2)(prepared_alike, job, tmp_path) == [found] * 2


def blocks_read(world, job, scratch):
    """Of the model's file: the blocks of which this rank has read anything."""
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        read = loading.read_stored

        def note(stream, entry, *rest):
            found.update({block_of[entry.start]} if entry.start in block_of else ())
            return read(stream, entry, *rest)

        entries = open_header(Path(job.model.path)).entries
        block_of = {
            entry.start: int(name.split("blocks.")[1].split(".")[0])
            for name, entry in entries.items()
            if "blocks." in name
        }
        patch.setattr(loading, "read_stored", note)
        prepare(job, CPU, scratch=scratch, world=world).features.close()
    return sorted(found)


@pytest.mark.parametrize(
    ("precision", "memory", "found"),
    [
        ("int4_svd", {"streamed_blocks": 2}, [[0], [1]]),
        ("bf16", {"streamed_blocks": 1}, [[0, 1], [0]]),  # block 1 is swapped
        ("bf16", {}, [[0, 1], [0, 1]]),
        ("bf16", {"streamed_blocks": 2, "stream_from": "mapped"}, [[0, 1], [0, 1]]),
    ],
)
def test_a_shared_block_is_read_and_quantized_by_one_rank(ranks, job: Job, tmp_path, precision, memory, found):
    job = replace(job, memory=MemoryOptions(**memory), model=replace(job.model, precision=precision))
    assert ranks(2)(blocks_read, job, tmp_path) == found


def from_plan_to_plan(world, job, scratch, ways):
    decision = decide(job, check_job(job), CPU, scratch)
    prepared = prepare(job, CPU, decision=decision, scratch=scratch, world=world)
    expected, features = steps(prepared), prepared.features
    for way in ways:
        features.reset()
        features.close()
        prepared.model.run_block = call_block
        plan = replace(plan_of(job, decision, world), **way)
        told = {"tell": pytest.fail, "scratch": scratch}
        maker = make_masters(plan, len(prepared.model.blocks), CPU, world=world, **told)
        features = apply_features(prepared.model, plan, decision, masters=maker, **told)
        assert_same(steps(prepared), expected)


def test_a_leaner_plan_takes_the_place_of_a_sharded_one(ranks, job: Job, tmp_path):
    ways = [
        {"streamed_blocks": 1},
        {"streamed_blocks": 2},
        {"shards": 1, "streamed_blocks": 1},
        {"shards": 1},
        {"streamed_blocks": 1, "stream_from": "mapped"},
        {"split_blocks": True},
    ]
    ranks(2)(from_plan_to_plan, replace(job, parallel=SHARDED), tmp_path, ways)


def peak_while_preparing(world, job, scratch):
    """The most of this rank's own memory, that no file backs and no other rank has, above what it has before."""
    world.wait_for_all()
    gc.collect()
    found, over = [_own_memory()], threading.Event()

    def watch():
        while not over.wait(0.001):
            found.append(_own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    prepared = prepare(job, CPU, scratch=scratch, world=world)
    over.set()
    watcher.join()
    prepared.features.close()
    return max(found) - found[0]


def _own_memory():
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


@pytest.mark.grid(2, "main memory of a large model")
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_rank_takes_its_shares_the_ring_and_a_block_that_is_being_read(tmp_path, large_job, monkeypatch):  # noqa: F811
    job, block, rest = large_job
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    processes = Ranks().in_folder(tmp_path)
    margin = 12e6  # the adapter, the index of a file, Python's own
    try:
        processes.of(4)(peak_while_preparing, job, tmp_path)  # imports, and what is learnt once
        sharded = replace(job, parallel=SHARDED)
        for peak in processes.of(4)(peak_while_preparing, sharded, tmp_path):
            assert peak < 8 * block / 4 + 2 * block + 2 * block + rest + margin
        swapped = replace(job, memory=MemoryOptions(streamed_blocks=8))
        for peak in processes.of(4)(peak_while_preparing, swapped, tmp_path):
            assert peak < 2 * block + 2 * block + rest + margin
    finally:
        processes.close()


def test_the_plan_of_a_job_with_a_sharded_base(job: Job, tmp_path):
    info = inspect(job.model.path)
    decision = decide(job, info, CPU)
    four = World(size=4, local_size=4, machine=(0, 1, 2, 3))
    plan = plan_of(replace(job, parallel=SHARDED), decision, four)
    assert plan.shards == 4
    assert not allows_graphs(plan)
    assert plan_of(replace(job, parallel=SHARDED), decision).shards == 1
    assert plan_of(job, decision, four).shards == 1
    assert replace(plan, shards=1) == plan_of(job, decision)
    assert "shards" not in asdict(with_plan(job, plan).memory)
    planner = make_planner(job, decision, measure_card(CPU))
    whole, spread = (
        estimate(planner.task, planner.buckets[0], replace(plan, shards=shards), planner.card).exact_vram
        for shards in (1, 4)
    )
    weights = dict(prepare(job, CPU).model.blocks[0].named_parameters())
    block = sum(tensor.nbytes for name, tensor in weights.items() if "lora" not in name)
    # Two blocks, whole; or a quarter of each and two slots.
    assert spread - whole == pytest.approx(2 * block / 4, rel=0.2)


def test_a_sharded_base_on_one_gpu_is_whole_and_says_so(job: Job, tmp_path):
    events = EventWriter(tmp_path / "events.jsonl")
    job = replace(job, parallel=SHARDED)
    plan = RunPlan(job, inspect(job.model.path), CPU, events=events, scratch=tmp_path)
    assert plan.load().features.streamer is None
    told = [event["message"] for event in EventReader(tmp_path / "events.jsonl").read() if event["event"] == "warning"]
    assert told == ["A sharded base has no effect with one GPU on a machine: there it is whole."]


def test_a_sharded_base_without_checkpointing_is_refused(job: Job):
    job = replace(job, parallel=SHARDED, memory=MemoryOptions(checkpointing=False))
    with pytest.raises(ConfigError, match="needs checkpointing"):
        check_job(job)
