"""Two ranks that share each clip's tokens, with every memory feature: the losses and summed gradients of one process."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from wan_train.core.memory.recompute import Kept
from wan_train.core.parallel.world import ALONE
from wan_train.core.plan.decision import decide
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.kernels import reference
from wan_train.tests.core.train.helpers import Direct, compute_loss, make_sample, with_class

CPU = torch.device("cpu")
KERNELS = {"compile": "kernels"}


@pytest.fixture
def job(job, tmp_path):
    """Clips and a picture whose frames have an odd number of tokens: the ranks' parts are not equal."""
    shapes = {"d": (16, 3, 6, 10), "e": (16, 1, 6, 6), "f": (16, 2, 6, 10)}
    samples = tuple(with_class(tmp_path, make_sample(tmp_path, name, shape=shape)) for name, shape in shapes.items())
    return replace(job, data=replace(job.data, samples=samples))


def trained(world, job, scratch, kept=None):
    """Losses and gradients of three batches, added up, and what was told."""
    said = []
    with ExitStack() as stack:
        if job.memory.compile == "kernels":
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            reference.put_in_place(patch)
            patch.setattr("wan_train.core.kernels.available.kernels_problem", lambda _device: None)
        folder = scratch / f"{world.size}.{world.rank}"
        prepared = prepare(job, CPU, tell=said.append, scratch=folder, kept=kept, world=world)
        generator = torch.Generator().manual_seed(3)
        for parameter in prepared.parameters:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        trainer = Trainer(
            job,
            model=prepared.model.train(),
            parameters=prepared.parameters,
            optimizer=build_optimizer(prepared.parameters, job.optimizer),
            batches=Direct(job),
        )
        losses = []
        for index in range(3):
            loss, _ = compute_loss(trainer, trainer.batches.get(index), index)
            loss.mean().backward()
            losses.append(loss.mean().item())
        prepared.features.close()
    return losses, np.concatenate([p.grad.double().numpy().ravel() for p in prepared.parameters]), said


def compare(ranks, tmp_path, job, *, kept=None, size=2, loss=1e-6, gradient=1e-6):
    """With plain blocks in one process."""
    plain = replace(job, memory=MemoryOptions(checkpointing=False), parallel=ParallelOptions())
    losses, expected, _ = trained(ALONE, plain, tmp_path)
    found = ranks(size, context=2)(trained, job, tmp_path, kept)
    assert found[0][0] == found[1][0] == pytest.approx(losses, rel=loss)
    total = found[0][1] + found[1][1]
    assert np.linalg.norm(total - expected) / np.linalg.norm(expected) < gradient
    assert np.linalg.norm(found[0][1] - expected) / np.linalg.norm(expected) > 1e-2
    return found


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"checkpointing": False},
        {"keep_attention": 1},
        {"keep_linears": 2},
        {"keep_attention": 2, "keep_linears": 1},
        {"split_blocks": True},
        {"split_blocks": True, "keep_attention": 1, "streamed_blocks": 1, "offload_inputs": True},
        {"ffn_pieces": 2},
        {"offload_inputs": True},
        {"streamed_blocks": 2, "offload_inputs": True, "keep_linears": 1},
        {"streamed_blocks": 2, "stream_from": "mapped", "ffn_pieces": 4},
        {"attention": "auto"},
    ],
    ids=str,
)
def test_with_memory_features(ranks, tmp_path, job, memory):
    (*_, said), _ = compare(ranks, tmp_path, replace(job, memory=MemoryOptions(**memory)))
    assert said == []


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"checkpointing": False},
        {"keep_attention": 1},
        {"keep_linears": 1},
        {"keep_attention": 2, "streamed_blocks": 2, "offload_inputs": True},
        {"split_blocks": True, "keep_attention": 1},
        {"ffn_pieces": 2},
    ],
    ids=str,
)
def test_by_kernels(ranks, tmp_path, job, memory):
    """What is not Triton of them."""
    pytest.importorskip("triton")
    compare(ranks, tmp_path, replace(job, memory=MemoryOptions(**memory, **KERNELS)))


@pytest.mark.parametrize("compile", ["off", "kernels"])
def test_all_ranks_keep_as_much(ranks, tmp_path, job, compile):
    """By the tokens of the clip and not of a rank's part: else one would exchange in the backward and wait for the other."""
    kept = {3 * 15: Kept(1, 1), 2 * 15: Kept(2, 0), 9: Kept(2, 2)}
    memory = MemoryOptions(keep_attention=0, keep_linears=0, compile=compile)
    compare(ranks, tmp_path, replace(job, memory=memory), kept=kept)


@pytest.mark.grid(3)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "memory",
    [{}, {"streamed_blocks": 1}, {"offload_inputs": True, "keep_attention": 1}],
    ids=["plain", "swapped", "kept"],
)
def test_with_a_base_that_lies_spread_over_the_ranks(ranks, tmp_path, job, memory, size):
    job = replace(job, memory=MemoryOptions(**memory))
    compare(ranks, tmp_path, replace(job, parallel=ParallelOptions(base="sharded")), size=size)


@pytest.mark.grid(3)
@pytest.mark.parametrize("precision", ["fp8", "int8", "nf4"])
def test_quantized_swapped_and_spread(ranks, tmp_path, job, precision):
    model, memory = replace(job.model, precision=precision), MemoryOptions(streamed_blocks=1)
    job = replace(job, model=model, memory=memory, parallel=ParallelOptions(base="sharded"))
    compare(ranks, tmp_path, job, size=4, loss=1e-3, gradient=2e-2)


@pytest.mark.grid(4)
@pytest.mark.parametrize("precision", ["fp8", "fp8_compute", "int8", "nf4", "int4_svd"])
def test_quantized(ranks, tmp_path, job, precision):
    """The weights are rounded alike in every rank; the arithmetic is bf16's or fp32's."""
    found = compare(
        ranks, tmp_path, replace(job, model=replace(job.model, precision=precision)), loss=1e-3, gradient=2e-2
    )
    assert found[0][2] == []


def test_in_bf16(ranks, tmp_path, job):
    compare(ranks, tmp_path, replace(job, model=replace(job.model, precision="bf16")), loss=1e-3, gradient=3e-2)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_other_adapters(ranks, tmp_path, job, kind):
    compare(ranks, tmp_path, replace(job, adapter=AdapterOptions(rank=4, alpha=4.0, kind=kind)))


@pytest.mark.parametrize("name", ["output_preservation", "blank_preservation"])
def test_forwards_without_the_adapter(ranks, tmp_path, job, name):
    """Of which some have no gradient, and several may wait for their backward."""
    compare(ranks, tmp_path, replace(job, regularizers=RegularizerOptions(**{name: 0.5})))


def test_two_groups_beside_each_other(ranks, tmp_path, job):
    found = compare(ranks, tmp_path, job, size=4)
    assert np.array_equal(found[0][1], found[2][1])


def test_dropout_and_compilation_are_told(job):
    info = inspect(job.model.path)
    asked = replace(job, adapter=replace(job.adapter, dropout=0.1), memory=MemoryOptions(compile="static"))
    decision = decide(asked, info, CPU, context=2)
    assert decision.modes == ("off",)
    assert not decision.graphs
    assert [sentence.split(",")[0] for sentence in decision.warnings] == [
        "compile is static",
        "With dropout and 2 GPUs that share each clip",
    ]


def exchanges(world, job, scratch):
    """(rows sent to each rank, whether autograd's backward has begun) of each exchange, in turn."""
    from wan_train.core.parallel.context import TokenShare

    noted, plain = [], TokenShare._exchange

    def note(self, x, send, receive):
        noted.append((tuple(x.shape[1:]), sum(send), torch._C._current_graph_task_id() != -1))
        return plain(self, x, send, receive)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenShare, "_exchange", note)
        trained(world, job, scratch)
    return noted


@pytest.mark.grid(4)
@pytest.mark.parametrize(
    ("memory", "backward"),
    [
        ({"checkpointing": False}, 4),
        ({}, 8),  # and those of the block that is run again
        ({"keep_attention": 2}, 8),  # its result is kept as the exchange back gets it
        ({"split_blocks": True}, 12),  # of blocks that are run twice again
        ({"split_blocks": True, "keep_attention": 2}, 8),
        ({**KERNELS}, 8),
        ({"keep_linears": 2, **KERNELS}, 4),  # nothing is run again
    ],
    ids=str,
)
def test_a_recompute_exchanges_again_in_every_rank_alike(ranks, tmp_path, job, memory, backward):
    """Queries, keys, values and the result: four of a block's forward, and as many of its backward."""
    first, second = ranks(2, context=2)(exchanges, replace(job, memory=MemoryOptions(**memory)), tmp_path)
    batches, blocks = 3, 2
    assert [when for _, _, when in first] == [when for _, _, when in second]
    assert [shape for shape, _, _ in first] == [shape for shape, _, _ in second]
    assert sum(not when for _, _, when in first) == batches * blocks * 4
    assert sum(when for _, _, when in first) == batches * blocks * backward


def planned(world, job, scratch):
    """What the rank's planner knows of the others, and the tokens that its activations are counted by."""
    from wan_train.core.plan.plan import Bucket, own_tokens
    from wan_train.core.train.events import EventWriter
    from wan_train.core.train.run_plan import RunPlan

    folder = scratch / f"rank{world.rank}"
    folder.mkdir()
    plan = RunPlan(
        job, inspect(job.model.path), CPU, events=EventWriter(folder / "events.jsonl"), scratch=scratch, world=world
    )
    planner = plan._planner
    said = plan.explain(plan._descent.choice)
    gpus = planner.task.gpus
    return gpus.count, gpus.context, planner.card.link, own_tokens(planner.task, Bucket((16, 3, 6, 10))), said


def test_the_plan_of_a_run_knows_who_shares(ranks, tmp_path, job):
    job = replace(job, memory=MemoryOptions(budget_gb=6.0))
    first, second = ranks(2, context=2)(planned, job, tmp_path)
    assert first[:4] == second[:4]
    assert first[:2] == (2, 2)
    assert first[2] > 0
    assert first[3] == 3 * 8  # of 15 tokens a frame, the first rank has 8
    assert "of which 2 GPUs share each clip" in first[4]
