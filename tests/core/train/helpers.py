"""Building blocks of the training tests: small samples on disk, and trainers over them."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.job import TrainSample
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.tools.miniature import DiTSize

SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16)


def make_sample(folder: Path, name: str, shape=(16, 2, 4, 4), **changes) -> TrainSample:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    latents, text = folder / f"{name}.latents.safetensors", folder / f"{name}.text.safetensors"
    save_file({"latents": torch.randn(shape, generator=generator)}, latents)
    save_file({"context": torch.randn(5, SIZE.text_dim, generator=generator)}, text)
    sample = TrainSample(
        name=name,
        latents_path=str(latents),
        latents_key=f"l-{name}",
        shape=shape,
        text_path=str(text),
        text_key=f"t-{name}",
        caption=f"caption of {name}",
    )
    return replace(sample, **changes)


class Direct:
    """Batches without a thread."""

    def __init__(self, job):
        self.schedule = BatchSchedule.of(job.data, job.loop)

    def get(self, index):
        return self.schedule.load(index)


def make_trainer(job, callbacks=()):
    prepared = prepare(job, torch.device("cpu"))
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=optimizer,
        batches=Direct(job),
        callbacks=callbacks,
    )
    prepared.model.train()
    return trainer
