"""Every method on a GPU, alone and in mixes: recorded, by kernels, swapped or quantized, it trains what it trains plainly."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.memory import graphs as module
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.plan.decision import may_use_graphs
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.optimizers.helpers import need
from wan_train.tests.core.train.every_method import adapters, assert_same_losses, laws, mix, optimizers, refusal
from wan_train.tests.core.train.test_crepa import encoder, vae  # noqa: F401
from wan_train.tests.core.train.test_every_method import BESIDE, SEEDS, low, others  # noqa: F401

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
ALL = {**optimizers(), **adapters(), **laws()}
BY_KERNELS = [*adapters(), *BESIDE]  # where numbers are made in another order
HELD = [
    {"streamed_blocks": 1},
    {"streamed_blocks": 1, "split_blocks": True},
    {"offload_inputs": True},
    {"checkpointing": False},
]


@pytest.fixture
def job(job):
    return replace(job, loop=LoopOptions(steps=9, checkpoint_every=100, caption_dropout=0.2), device="cuda:0")


@pytest.fixture
def recorded(monkeypatch):
    """One entry for each recorded forward or backward."""
    found, record = [], module._record_cuda
    monkeypatch.setattr(module, "_record_cuda", lambda act, pool: found.append(None) or record(act, pool))
    return found


def method(name, job, beside):
    """The job with the method; those whose package is not here are skipped."""
    if name in OPTIMIZERS.names:
        need(*OPTIMIZERS.get(name).packages)
    return (beside | ALL)[name](job)


def train(tmp_path, job, name, precision="bf16", **memory):
    """Losses, what the adapter became, and warnings."""
    options = MemoryOptions(
        **{"plan": "manual", "attention": "default", "cuda_graphs": "off", "compile": "off", **memory}
    )
    other = None if job.other_expert is None else replace(job.other_expert, precision=precision)
    made = replace(job, memory=options, model=replace(job.model, precision=precision), other_expert=other)
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.write_job(made)
    lora = load_file(run_job(folder, EventWriter(folder.events_path), CUDA, lambda: False))
    events = EventReader(folder.events_path).read()
    losses = [event["loss"] for event in events if event["event"] == "step"]
    return losses, lora, [event["message"] for event in events if event["event"] == "warning"]


def assert_same(one, other, *, is_steady):
    """Losses; and where rounding is not made larger (signs of gradients, orthogonal updates), weights as well."""
    assert_same_losses(one[0], other[0], rel=2e-3 if is_steady else 2e-2)
    assert one[1].keys() == other[1].keys()
    if is_steady:
        whole = sum(float(value.float().square().sum()) for value in one[1].values()) ** 0.5
        apart = sum(float((one[1][n].float() - other[1][n].float()).square().sum()) for n in one[1]) ** 0.5
        assert apart < 0.02 * whole


def steady(job):
    """Whether nine steps of the job keep two runs that differ by rounding near each other."""
    return job.optimizer.name in ("adamw", "custom", "ademamix", "schedulefree") and not job.rollout.steps


@pytest.mark.parametrize("name", [*ALL, *BESIDE])
def test_by_recorded_steps(tmp_path, job, others, recorded, name):  # noqa: F811
    made = method(name, job, others)
    plain = train(tmp_path, made, "without")
    assert recorded == []
    graphed = train(tmp_path, made, "with", cuda_graphs="auto")
    assert not [sentence for sentence in graphed[2] if "cannot be recorded" in sentence]
    held = replace(made, memory=MemoryOptions(cuda_graphs="auto"))
    assert bool(recorded) == may_use_graphs(held, inspect(made.model.path).config, CUDA)
    assert_same(plain, graphed, is_steady=steady(made))


@pytest.mark.parametrize("name", BY_KERNELS)
def test_by_kernels(tmp_path, job, others, name):  # noqa: F811
    made = method(name, job, others)
    plain = train(tmp_path, made, "plain")
    assert_same(plain, train(tmp_path, made, "kernels", compile="kernels"), is_steady=False)


@pytest.mark.parametrize("memory", HELD, ids=str)
@pytest.mark.parametrize("name", [*adapters(), *BESIDE])
def test_however_the_base_is_held(tmp_path, job, others, name, memory):  # noqa: F811
    made = method(name, job, others)
    if made.other_expert is not None and memory.get("offload_inputs"):
        memory = {**memory, "streamed_blocks": 1}
    assert_same(train(tmp_path, made, "plain"), train(tmp_path, made, "held", **memory), is_steady=steady(made))


@pytest.mark.parametrize("precision", ["fp8", "int8", "nf4", "fp8_compute"])
@pytest.mark.parametrize("name", [*adapters(), *BESIDE])
def test_with_a_quantized_base(tmp_path, job, others, name, precision):  # noqa: F811
    """The same base, swapped or not, recorded or not."""
    if precision == "nf4":
        need("bitsandbytes")
    made = method(name, job, others)
    plain = train(tmp_path, made, "plain", precision)
    swapped = train(tmp_path, made, "swapped", precision, streamed_blocks=1)
    assert_same(plain, swapped, is_steady=steady(made) and precision != "fp8_compute")
    graphed = train(tmp_path, made, "recorded", precision, cuda_graphs="auto")
    assert_same(plain, graphed, is_steady=steady(made) and precision != "fp8_compute")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mix(tmp_path, job, others, recorded, seed):  # noqa: F811
    names, made = mix(seed, job, others)
    need(*OPTIMIZERS.get(made.optimizer.name).packages)
    assert refusal(made) == ""
    assert len(names) >= 9, names
    plain = train(tmp_path, made, "plain")
    for name, memory in {"recorded": {"cuda_graphs": "auto"}, "swapped": {"streamed_blocks": 1}}.items():
        assert_same(plain, train(tmp_path, made, name, **memory), is_steady=steady(made))


@pytest.mark.parametrize("name", [*adapters(), *BESIDE])
def test_with_a_planner(tmp_path, job, others, name):  # noqa: F811
    """By its own plan, which has kernels and graphs where they may be: the losses of plain blocks, to bf16's rounding."""
    made = method(name, job, others)
    plain = train(tmp_path, made, "plain")
    planned = train(tmp_path, made, "planned", plan="auto", compile="auto", cuda_graphs="auto", attention="auto")
    assert_same(plain, planned, is_steady=False)
