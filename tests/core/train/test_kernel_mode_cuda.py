"""Blocks by kernels on a GPU: gradients and losses of the plain path, with every precision and feature; ready in time."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.memory import graphs
from wan_train.core.plan.decision import decide, num_batch_sizes
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import make_sample, train_in_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
PRECISIONS = ["bf16", "fp16", "fp32", "fp8", "fp8_compute", "int8", "nf4", "int4_svd"]
FEATURES = [
    {},
    {"checkpointing": False},
    {"keep_attention": 1},
    {"keep_attention": 2, "keep_linears": 1},
    {"streamed_blocks": 2, "offload_inputs": True},
    {"streamed_blocks": 2, "offload_inputs": True, "keep_linears": 2},
    {"streamed_blocks": 2, "stream_from": "mapped", "keep_attention": 1},
    {"split_blocks": True},
    {"split_blocks": True, "streamed_blocks": 1, "offload_inputs": True, "keep_attention": 1},
    {"ffn_pieces": 2},
    {"ffn_pieces": 4, "streamed_blocks": 1, "offload_inputs": True},
]


def train(tmp_path, job, name, **memory):
    options = MemoryOptions(**{"plan": "manual", "attention": "default", "cuda_graphs": "off", **memory})
    losses, lora, events = train_in_folder(tmp_path, replace(job, memory=options, device="cuda:0"), name, CUDA)
    return losses, lora, [event["message"] for event in events if event["event"] == "warning"]


@pytest.fixture
def longer(tmp_path, job: Job) -> Job:
    """Clips of 384 and 512 tokens, which a feed-forward in pieces cuts."""
    shapes = {"wide": (16, 3, 16, 32), "high": (16, 4, 32, 16)}
    samples = tuple(make_sample(tmp_path, name, shape=shape) for name, shape in shapes.items())
    return replace(job, data=replace(job.data, samples=samples), loop=replace(job.loop, steps=6))


@pytest.mark.parametrize("memory", FEATURES, ids=str)
def test_every_feature(tmp_path, longer: Job, memory):
    """Losses of a run, and gradients of a step; the weights of a run differ by what AdamW makes of the last digit."""
    losses, _, _ = train(tmp_path, longer, "plain", compile="off")
    found, _, warnings = train(tmp_path, longer, "kernels", compile="kernels", **memory)
    assert warnings == []
    assert found == pytest.approx(losses, rel=2e-3)
    exact = gradients(longer, "fp32", compile="off")
    error = (gradients(longer, "bf16", compile="off") - exact).norm()
    ours = gradients(longer, "bf16", scratch=tmp_path / "scratch", compile="kernels", **memory)
    assert (ours - exact).norm() < 1.2 * error


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kept", [{}, {"keep_attention": 2, "keep_linears": 2}], ids=["nothing", "all"])
def test_losses_of_200_steps(tmp_path, longer: Job, precision, kept):
    """They lie over those of the plain path."""
    job = replace(longer, model=replace(longer.model, precision=precision), loop=replace(longer.loop, steps=200))
    losses, _, _ = train(tmp_path, job, "plain", compile="off")
    found, _, warnings = train(tmp_path, job, "kernels", compile="kernels", **kept)
    assert warnings == []
    plain, kernels = (torch.tensor(each).view(-1, 20).mean(dim=1) for each in (losses, found))
    assert ((kernels - plain).abs() < 0.01 * plain).all()


def gradients(job, precision, *, scratch=None, **memory):
    """Of a LoRA that does something, after a forward and a backward. `scratch`: for blocks that come from files."""
    options = MemoryOptions(plan="manual", attention="default", cuda_graphs="off", **memory)
    job = replace(job, model=replace(job.model, precision=precision), memory=options)
    prepared = prepare(job, CUDA, scratch=scratch)
    generator = torch.Generator().manual_seed(0)
    for parameter in prepared.parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator).to(CUDA) / 8
    model = prepared.model.train()
    latents = torch.randn(1, 16, 3, 16, 32, generator=generator).to(CUDA)
    text = torch.randn(1, 5, model.config.text_dim, generator=generator).to(CUDA)
    model(latents, torch.tensor([400.0], device=CUDA), text).float().square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in prepared.parameters])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_as_near_to_exact_ones_as_those_of_the_plain_path(longer: Job, precision):
    exact = gradients(longer, "fp32", compile="off")
    plain = gradients(longer, precision, compile="off")
    for kept in ({}, {"keep_attention": 2}, {"keep_linears": 2}):
        found = gradients(longer, precision, compile="kernels", **kept)
        if precision == "fp32":
            assert (found - exact).norm() < 1e-3 * exact.norm()  # products may be in TF32
        else:
            assert (found - exact).norm() < 1.2 * (plain - exact).norm()


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_compute"])
@pytest.mark.parametrize("memory", [{}, {"checkpointing": False}, {"keep_attention": 2, "keep_linears": 1}], ids=str)
def test_cuda_graphs_record_it(tmp_path, job: Job, monkeypatch, precision, memory):
    """With accumulation: two forwards see the same weights, and what the first made of them must not be recorded as there."""
    found, record = [], graphs._record_cuda
    monkeypatch.setattr(graphs, "_record_cuda", lambda act, pool: found.append(act) or record(act, pool))
    loop = replace(job.loop, steps=9, gradient_accumulation=2)
    job = replace(job, model=replace(job.model, precision=precision), loop=loop)
    losses, lora, _ = train(tmp_path, job, "without", compile="kernels", **memory)
    assert found == []
    graphed, other, warnings = train(tmp_path, job, "with", compile="kernels", cuda_graphs="auto", **memory)
    assert warnings == []
    assert len(found) == 2 * num_batch_sizes(job)
    assert graphed == pytest.approx(losses, rel=2e-3)
    assert all(torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4) for name in lora)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_compute"])
def test_no_kernel_is_left_to_compile_in_the_first_step(longer: Job, precision):
    import triton

    compiled = []
    hook = triton.knobs.runtime.jit_post_compile_hook
    job = replace(longer, model=replace(longer.model, precision=precision))
    options = MemoryOptions(plan="manual", attention="default", compile="kernels", keep_attention=2, keep_linears=1)
    try:
        prepared = prepare(replace(job, memory=options), CUDA)
        triton.knobs.runtime.jit_post_compile_hook = lambda *_, fn, **__: compiled.append(str(fn))
        model = prepared.model.train()
        text = torch.randn(1, 5, model.config.text_dim, device=CUDA)
        for shape in ((1, 16, 3, 16, 32), (1, 16, 1, 8, 8)):
            model(torch.randn(shape, device=CUDA), torch.tensor([400.0], device=CUDA), text).square().mean().backward()
    finally:
        triton.knobs.runtime.jit_post_compile_hook = hook
    assert compiled == []


def test_auto_is_kernels(longer: Job):
    assert decide(longer, inspect(longer.model.path), CUDA).modes == ("kernels", "off")
