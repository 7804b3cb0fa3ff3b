"""One LoRA through both experts on a GPU: the same wherever the one that waits lies, and however blocks run."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.settings.job import ExpertTurns, ModelSpec
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_cuda import MODEL
from wan_train.tools.miniature import dit_metadata, wan_dit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def shared(job, tmp_path):
    low = tmp_path / "low.safetensors"
    save_file(wan_dit(SIZE, seed=1), low, metadata=dit_metadata(SIZE))
    return replace(
        job,
        stage="both",
        device="cuda:0",
        timesteps=TimestepOptions(),
        other_expert=ModelSpec(path=str(low), identity=inspect(low).identity),
        turns=ExpertTurns(every=2, boundary=0.875),
        loop=LoopOptions(steps=7, checkpoint_every=100),
    )


def train(tmp_path, job, name):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    lora = load_file(run_job(folder, EventWriter(folder.events_path), CUDA, lambda: False))
    events = EventReader(folder.events_path).read()
    return [event["loss"] for event in events if event["event"] == "step"], lora


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_it_is_the_same_wherever_the_other_expert_lies(tmp_path, shared, precision):
    """In main memory beside the model, beside swapped blocks of each kind, or on the GPU."""
    job = replace(shared, model=replace(shared.model, precision=precision))
    job = replace(job, other_expert=replace(job.other_expert, precision=precision))
    ways = {
        "host": MemoryOptions(plan="manual", compile="off", cuda_graphs="off"),
        "pinned": MemoryOptions(plan="manual", compile="off", streamed_blocks=1),
        "pageable": MemoryOptions(plan="manual", compile="off", streamed_blocks=2, stream_from="pageable"),
        "mapped": MemoryOptions(plan="manual", compile="off", streamed_blocks=1, stream_from="mapped"),
        "planned": MemoryOptions(compile="off", cuda_graphs="off"),
    }
    found = {name: train(tmp_path, replace(job, memory=memory), f"{precision} {name}") for name, memory in ways.items()}
    losses, lora = found.pop("host")
    for name, (others, other) in found.items():
        assert others == pytest.approx(losses, rel=1e-5), name
        for key, tensor in lora.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-6)


def test_graphs_and_kernels_see_the_weights_change(tmp_path, shared):
    """Of a model whose heads are as wide as the real one's."""
    specs = []
    for seed in (0, 1):
        path = tmp_path / f"large{seed}.safetensors"
        save_file(wan_dit(MODEL, seed=seed), path, metadata=dit_metadata(MODEL))
        specs.append(
            ModelSpec(path=str(path), identity=inspect(path).identity, precision="bf16", label=shared.model.label)
        )
    job = replace(shared, model=specs[0], other_expert=specs[1])
    ways = {
        "plain": {"compile": "off", "cuda_graphs": "off"},
        "graphs": {"compile": "off"},
        "kernels": {"compile": "kernels"},
    }
    found = {
        name: train(tmp_path, replace(job, memory=MemoryOptions(plan="manual", **memory)), name)
        for name, memory in ways.items()
    }
    losses = found["plain"][0]
    assert found["graphs"][0] == pytest.approx(losses, rel=1e-3)
    assert found["kernels"][0] == pytest.approx(losses, rel=0.03)
