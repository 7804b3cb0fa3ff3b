"""Building blocks of the training tests: small samples on disk, and trainers over them."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from wan_train.core.settings.job import CaptionText, Job, TrainSample
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.tools.miniature import DiTSize

DEEP = 6  # blocks: two streamed ones have two slots, so what is gained begins with the third
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


def with_class(folder: Path, sample: TrainSample) -> TrainSample:
    """The sample with an embedding for each of its captions with a class word."""
    texts = []
    for number in range(1 + len(sample.more_texts)):
        path = folder / f"{sample.name}.class{number}.safetensors"
        generator = torch.Generator().manual_seed(sum(sample.name.encode()) + 1 + number)
        save_file({"context": torch.randn(4, SIZE.text_dim, generator=generator)}, path)
        texts.append(CaptionText(path=str(path), key=f"c{number}-{sample.name}"))
    return replace(sample, class_texts=tuple(texts))


def train_in_folder(tmp_path: Path, job: Job, name: str, device: torch.device):
    """Losses, LoRA and events of a run."""
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    lora = run_job(folder, EventWriter(folder.events_path), device, lambda: False)
    events = EventReader(folder.events_path).read()
    return [event["loss"] for event in events if event["event"] == "step"], load_file(lora), events


class Direct:
    """Batches without a thread."""

    def __init__(self, job):
        self.schedule = BatchSchedule.of(job.data, job.loop, with_class=job.regularizers.output_preservation > 0)

    def get(self, index):
        return self.schedule.load(index)


def compute_loss(trainer, batch, index):
    """Loss [B] with its gradient, and sigmas [B], of batch number `index`."""
    noisy = trainer.add_noise(batch, index)
    terms = [term for group in trainer.objective.terms(noisy, trainer.forwards) for term in group]
    return sum(term.weight * term.losses for term in terms), noisy.sigmas


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
