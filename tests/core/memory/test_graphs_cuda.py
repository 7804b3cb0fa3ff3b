"""CUDA graphs of a real model's steps: the same losses and LoRA as without them, and memory given back."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn
from wan_train.core.memory import graphs as module
from wan_train.core.objective.objective import FlowMatching, Sum
from wan_train.core.objective.regularizers import BlankPreservation
from wan_train.core.plan import decision, planning
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train import features, loop
from wan_train.tests.core.train.helpers import make_sample, train_in_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
WORKSPACES = 128 * 2**20  # bytes that cuBLAS keeps of each stream and pool that it has worked in


@pytest.fixture
def recorded(monkeypatch):
    """One entry for each recorded forward or backward."""
    found, record = [], module._record_cuda
    monkeypatch.setattr(module, "_record_cuda", lambda act, pool: found.append(None) or record(act, pool))
    return found


def train(tmp_path, job, name, **memory):
    options = MemoryOptions(**{"plan": "manual", "attention": "default", **memory})
    losses, lora, events = train_in_folder(tmp_path, replace(job, memory=options, device="cuda:0"), name, CUDA)
    return losses, lora, [event["message"] for event in events if event["event"] == "warning"]


@pytest.mark.parametrize(
    ("precision", "memory"),
    [
        ("bf16", {"compile": "static", "checkpointing": False}),
        ("bf16", {"compile": "static"}),
        ("bf16", {"compile": "static", "keep_attention": 2, "keep_linears": 1}),
        ("bf16", {"compile": "off"}),
        ("bf16", {"compile": "off", "keep_attention": 2, "ffn_pieces": 2}),
        ("fp8", {"compile": "off"}),
        ("int8", {"compile": "static", "checkpointing": False}),
        ("fp8_compute", {"compile": "static", "checkpointing": False}),
        ("fp8_compute", {"compile": "off"}),
    ],
    ids=str,
)
def test_the_same_as_without(tmp_path, job: Job, recorded, memory, precision):
    job = replace(job, model=replace(job.model, precision=precision), loop=replace(job.loop, steps=9))  # three epochs
    losses, lora, _ = train(tmp_path, job, "without", cuda_graphs="off", **memory)
    assert recorded == []
    found, other, warnings = train(tmp_path, job, "with", **memory)
    assert warnings == []
    assert len(recorded) == 2 * decision.num_batch_sizes(job)
    assert found == pytest.approx(losses, rel=2e-3)
    assert all(torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4) for name in lora)


def test_accumulation_over_sizes_and_previews_between(tmp_path, job: Job, recorded):
    data = replace(job.data, samples=(*job.data.samples, make_sample(tmp_path, "other", shape=(16, 1, 8, 4))))
    job = replace(job, data=data, loop=replace(job.loop, steps=8, gradient_accumulation=3))
    losses, lora, _ = train(tmp_path, job, "without", cuda_graphs="off", compile="off")
    job = replace(job, previews=PreviewOptions(every=3, steps=2, shift=5.0))
    found, other, _ = train(tmp_path, job, "with", compile="off")
    assert len(recorded) > 2 * decision.num_batch_sizes(job)  # recorded again after a preview
    assert found == pytest.approx(losses, rel=2e-3)
    assert all(torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4) for name in lora)


@pytest.mark.parametrize("compile", ["off", "static", "kernels"])
def test_several_terms_with_forwards_of_the_base_between(tmp_path, job: Job, recorded, monkeypatch, compile):
    """The forwards with a gradient are recorded ones, the others run beside; nothing is recorded twice for a size."""
    both = Sum(FlowMatching(job.loss), BlankPreservation(0.5))
    monkeypatch.setattr(loop, "objective_of", lambda _job: both)
    for module_of_plans in (planning, decision):
        monkeypatch.setattr(module_of_plans, "objective_of", lambda _job: both)
    job = replace(job, loop=replace(job.loop, steps=9, gradient_accumulation=2))
    losses, lora, _ = train(tmp_path, job, "without", cuda_graphs="off", compile=compile)
    found, other, warnings = train(tmp_path, job, "with", compile=compile)
    assert warnings == []
    assert len(recorded) == 2 * decision.num_batch_sizes(job)
    assert found == pytest.approx(losses, rel=2e-3)
    assert all(torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4) for name in lora)


def test_backwards_that_are_delayed():
    """The first forward is a recorded one, and the second runs beside it; either backward may come first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(CUDA)
    graphs = module.Graphs(model.forward, list(model.parameters()), tell=pytest.fail)
    batches = [torch.randn(8, 64, device=CUDA) for _ in range(2)]
    for _ in range(module.WARM_UP + 1):
        graphs(batches[0]).square().mean().backward()
    for order in ((0, 1), (1, 0)):
        model.zero_grad(set_to_none=True)
        sum(model.forward(x).square().mean() for x in batches).backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        outputs = [graphs(x) for x in batches]
        for number in order:
            outputs[number].square().mean().backward()
        for parameter, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_recorded_runs_as_it_is(tmp_path, job: Job, recorded, monkeypatch):
    """A host that waits in the forward breaks the recording, and nothing else."""
    losses, _, _ = train(tmp_path, job, "without", cuda_graphs="off", compile="off")

    class Waiting(features.Graphs):
        def __init__(self, forward, *args, **named):
            def waits(*tensors, **more):
                tensors[0].sum().item()
                return forward(*tensors, **more)

            super().__init__(waits, *args, **named)

    monkeypatch.setattr(features, "Graphs", Waiting)
    found, _, warnings = train(tmp_path, replace(job, loop=replace(job.loop, steps=6)), "with", compile="off")
    assert len(warnings) == 1
    assert "CUDA graphs cannot be recorded here" in warnings[0]
    assert found[: len(losses)] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    "memory",
    [{"streamed_blocks": 1}, {"offload_inputs": True}, {"split_blocks": True}, {"cuda_graphs": "off"}],
    ids=str,
)
def test_plans_in_which_the_host_has_to_do_something_have_none(tmp_path, job: Job, recorded, memory):
    train(tmp_path, replace(job, loop=replace(job.loop, steps=5)), "run", compile="off", **memory)
    assert recorded == []


def _reserved_by(rows_of_step):
    """Bytes that the steps leave reserved, and the most that they had, above the model; the graphs are in them."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(8)]
    model = nn.Sequential(*layers).to(CUDA)
    told = []
    graphs = module.Graphs(model.forward, list(model.parameters()), tell=told.append)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    for rows in rows_of_step:
        graphs(torch.randn(rows, 512, device=CUDA)).square().mean().backward()
        model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    assert told == []
    found = torch.cuda.memory_reserved() - before, torch.cuda.max_memory_reserved() - before, len(graphs._graphs)
    graphs.release()
    return found


def test_the_graphs_of_three_sizes_reserve_about_as_much_as_that_of_the_largest():
    """Whatever the order in which they come; a step of a size that is new has no graphs' memory beside its own."""
    largest, _, _ = _reserved_by([16000] * 5)
    warm = [8000, 12000, 16000] * module.WARM_UP
    _, peak, number = _reserved_by(warm)  # of steps without graphs, whose freed pieces a larger size does not fit into
    assert number == 0
    held, most, number = _reserved_by([*warm, 8000, 12000, 16000, 8000])
    assert number == 3
    assert held < 1.2 * largest
    assert most < 1.15 * peak
    early = [8000] * 4  # recorded before the others come
    held, most, number = _reserved_by([*early, *warm, 8000, 12000, 16000])
    assert number == 3
    assert held < 1.2 * largest
    assert most < 1.15 * peak


def test_what_is_given_back_is_free(recorded):
    before = torch.cuda.memory_reserved()
    _reserved_by([4000] * 4)
    assert len(recorded) == 2
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + WORKSPACES
