"""A tiny training for campaigns: a model, a cache as the store writes it, and jobs over them, all in one folder."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from wan_train.core.data.store import Store
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import DataSpec, Job, ModelSpec, TrainSample
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.events import EventWriter, read_history
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit

SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=16)
SHAPE = (16, 1, 4, 4)
STEPS = 4
CPU = torch.device("cpu")


def write_model(path: Path) -> Path:
    """A model file."""
    save_file(wan_dit(SIZE, seed=0), path, metadata=dit_metadata(SIZE))
    return path


def save_texts(store: Store) -> None:
    """Embeddings of two captions and of the empty one."""
    for number, key in enumerate(("7a", "7b", "7e")):
        generator = torch.Generator().manual_seed(number)
        store.save("text", key, {"context": torch.randn(3, SIZE.text_dim, generator=generator)}, {"caption": key})


def save_latents(store: Store) -> None:
    """Latents of two samples."""
    for number, key in enumerate(("1a", "1b")):
        generator = torch.Generator().manual_seed(10 + number)
        store.save("latents", key, {"latents": torch.randn(SHAPE, generator=generator)}, {"name": key})


def make_job(model: Path, cache: Path, **loop: int) -> Job:
    """A job over what lies in the folder `cache`."""
    store = Store(cache)
    samples = [
        TrainSample(
            name=f"clip {letter}",
            latents_path=str(store.path("latents", f"1{letter}")),
            latents_key=f"1{letter}",
            shape=SHAPE,
            text_path=str(store.path("text", f"7{letter}")),
            text_key=f"7{letter}",
            caption=f"caption {letter}",
        )
        for letter in "ab"
    ]
    data = DataSpec(
        samples=tuple(samples),
        empty_text_path=str(store.path("text", "7e")),
        empty_text_key="7e",
        text_dim=SIZE.text_dim,
    )
    return Job(
        name="tiny",
        stage="low",
        model=ModelSpec(path=str(model), identity=inspect(model).identity, label="wan2.2-t2v-a14b"),
        data=data,
        adapter=AdapterOptions(rank=2, alpha=2.0),
        timesteps=TimestepOptions(sigma_max=0.875),
        optimizer=OptimizerOptions(learning_rate=1e-2),
        loop=replace(LoopOptions(steps=STEPS, checkpoint_every=1, keep_last=3, caption_dropout=0.3), **loop),
        device="cpu",
    )


def train(folder: RunFolder, stop_at: int | None = None) -> Path | None:
    """The run of a folder, in this process; None where it was stopped."""

    def should_stop() -> bool:
        return stop_at is not None and max(read_history(folder.events_path).losses, default=0) >= stop_at

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return run_job(folder, EventWriter(folder.events_path), CPU, should_stop)
    except RunStoppedError:
        return None


def same_lora(path: Path, wanted: dict[str, torch.Tensor]) -> bool:
    """Whether a LoRA has these weights, to the bit."""
    found = load_file(path)
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """Those of a LoRA, in memory."""
    return {key: tensor.clone() for key, tensor in load_file(path).items()}
