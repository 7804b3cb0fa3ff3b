"""A miniature model and two samples on disk, and jobs over them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.plan.card import Card, measure_card
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import DataSpec, Job, ModelSpec
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import DEEP, SIZE, make_sample
from wan_train.tools.miniature import dit_metadata, wan_dit


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "mini.safetensors"
    save_file(wan_dit(SIZE, seed=0), path, metadata=dit_metadata(SIZE))
    return path


@pytest.fixture
def job(tmp_path, model_path) -> Job:
    return job_in(tmp_path, model_path)


def job_in(tmp_path: Path, model_path: Path) -> Job:
    """A job over samples that are written there."""
    save_file({"context": torch.zeros(1, SIZE.text_dim)}, tmp_path / "empty.safetensors")
    samples = (
        make_sample(tmp_path, "a"),
        make_sample(tmp_path, "b", shape=(16, 1, 4, 6)),
        make_sample(tmp_path, "c"),
    )
    return Job(
        name="test",
        stage="low",
        model=ModelSpec(path=str(model_path), identity=inspect(model_path).identity, label="wan2.2-t2v-a14b"),
        data=DataSpec(
            samples=samples,
            empty_text_path=str(tmp_path / "empty.safetensors"),
            empty_text_key="empty",
            text_dim=SIZE.text_dim,
        ),
        adapter=AdapterOptions(rank=4, alpha=4.0),
        timesteps=TimestepOptions(sigma_max=0.875),
        optimizer=OptimizerOptions(learning_rate=1e-2),
        loop=LoopOptions(steps=6, checkpoint_every=2, keep_last=2, caption_dropout=0.2),
        device="cpu",
    )


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory) -> ModelSpec:
    """A model with blocks enough for plans to differ."""
    size = replace(SIZE, num_layers=DEEP)
    path = tmp_path_factory.mktemp("deep") / "deep.safetensors"
    save_file(wan_dit(size, seed=0), path, metadata=dit_metadata(size))
    return ModelSpec(path=str(path), identity=inspect(path).identity, label="wan2.2-t2v-a14b")


@pytest.fixture(scope="session")
def card() -> Card:
    """The CPU, measured once."""
    return measure_card(torch.device("cpu"))
