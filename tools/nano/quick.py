"""Trainings of the nano models without a run's folder, for benches: what does not change from one to the next stays loaded.

Loop, objective, optimizer, adapter and draws are the core's, so that the LoRA is that of a run, to the bit (a test compares
them); there are no checkpoints, no diary and no plan. The two experts are trained in turns, so that the pair can be looked at
on the way.

N clips, B batch, C channels, F latent frames, H W latent size, S text tokens, D text width.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...core.adapters.rank_gate import set_noise_window
from ...core.adapters.setup import add_adapter, up_parameters, use_light_forward
from ...core.facts import LATENT_CHANNELS, latent_shape
from ...core.flow.objective import sample_noise
from ...core.flow.sigmas import sigma_at
from ...core.memory.graphs import Graphs
from ...core.plan.decision import may_use_graphs
from ...core.routes import read_routes, routes_among
from ...core.sample.sampler import initial_noise, sample
from ...core.serial import digest
from ...core.settings.job import DataSpec, Job, TrainSample
from ...core.train.average import averages_of
from ...core.train.batches import Batch, BatchSchedule, load_batch, load_tensor, make_draws
from ...core.train.build import build_job
from ...core.train.checks import check_data
from ...core.train.held_out import HeldOutLoss
from ...core.train.loop import Trainer
from ...core.train.optimizers import build_optimizer
from ...core.train.together import schedule_of
from ...core.train.validation import NUM_SIGMAS, VALIDATION_SEED
from ...core.wan.checkpoint import inspect
from ...core.wan.model import WanTransformer
from . import world
from .evaluate import SAMPLING, Family
from .exam import EXAM_SEED
from .family import STAGES, Files
from .ground import see
from .judge import judge
from .pairs import Pair, PairExam, grade_pair, movements
from .quick_data import pair_data
from .settings import Settings
from .vae import to_frames, to_video
from .workshop import Workshop

AT_ONCE = 96  # clips that are sampled in one batch


class ReadOnce:
    """The batches of one data set in one order, on the device: read once for all trainings that have them alike."""

    def __init__(self, schedule: BatchSchedule, device: torch.device) -> None:
        self._schedule, self._device = schedule, device
        self._found: dict[int, Batch] = {}

    def get(self, index: int) -> Batch:
        """Batch number `index`, without its draws."""
        if index not in self._found:
            self._found[index] = self._schedule.load(index).map(lambda tensor: tensor.to(self._device))
        return self._found[index]


@dataclass(frozen=True)
class Drawn:
    """Batches with the draws of a job: `core.train.loop.Batches`."""

    job: Job
    kept: ReadOnce

    def get(self, index: int) -> Batch:
        """Batch number `index`."""
        batch = self.kept.get(index)
        draws, device = make_draws(self.job, batch, index), batch.latents.device
        if device.type == "cuda":
            draws = draws.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return replace(batch, draws=draws)


@dataclass(frozen=True)
class Pupil:
    """One expert in training."""

    trainer: Trainer
    model: WanTransformer
    job: Job


class QuickSchool:
    """The base, loaded once; what it is asked is encoded once."""

    def __init__(self, files: Files, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.files = files
        self.family = Family.load(files, device)
        self.identity = digest(Workshop(files=files, folder=Path()).identities())
        self._infos = {stage: inspect(files.dit(stage).absolute()) for stage in STAGES}
        self._kept: dict[object, ReadOnce] = {}
        self.text = lru_cache(maxsize=None)(self._text)

    def pupil(self, job: Job) -> Pupil:
        """The base of a job's stage with the job's new LoRA, ready to train."""
        check_data(job, self._infos[job.stage])
        base = self.family.high if job.stage == "high" else self.family.low
        assert isinstance(base, WanTransformer)
        model = copy.deepcopy(base)
        parameters = [weight for _, weight in add_adapter(model, job.adapter, seed=job.loop.seed)]
        model.routes = routes_among(read_routes(job.tread.routes), model.config.num_layers)
        set_noise_window(model, job.timesteps.sigma_min, job.timesteps.sigma_max)
        use_light_forward(model)
        if may_use_graphs(job, model.config, self.device):
            forward = type(model).forward.__get__(model)
            vars(model)["forward"] = Graphs(forward, parameters, tell=print, held=lambda: model.rope_tables)
        optimizer = build_optimizer(parameters, job.optimizer, ups=up_parameters(model))
        averages = averages_of(job, model, parameters, optimizer)
        trainer = Trainer(
            job, model=model, parameters=parameters, optimizer=optimizer, batches=Drawn(job, self._batches(job))
        )
        trainer.shown = averages.saved
        trainer.after_update += [] if averages.ema is None else [averages.ema]
        model.train()
        return Pupil(trainer, model, job)

    def _batches(self, job: Job) -> ReadOnce:
        loop = job.loop
        with_class = job.regularizers.output_preservation > 0
        key = job.data, loop.batch_size, loop.seed, loop.caption_dropout, with_class
        if key not in self._kept:
            self._kept[key] = ReadOnce(schedule_of(job), self.device)
        return self._kept[key]

    def _text(self, prompt: str) -> Tensor:
        return self.family.contexts([prompt])

    def data(self, pair: Pair, settings: Settings, folder: Path) -> DataSpec:
        """The training set of a pair; encodings lie below `folder`."""

        def encode_text(captions: Sequence[str]) -> list[Tensor]:
            contexts, lengths = self.family.text.encode(captions)
            return [row[:length] for row, length in zip(contexts, lengths.tolist(), strict=True)]

        return pair_data(
            pair,
            clips=settings.clips,
            others=settings.others,
            seed=settings.loop.seed,
            folder=folder,
            encode=self.encoded,
            encode_text=encode_text,
            models=self.identity,
        )

    def job(self, stage: str, settings: Settings, data: DataSpec) -> Job:
        """The job of one expert."""
        return build_job(self._infos[stage], data, settings, name="bench", stage="high" if stage == "high" else "low")

    def train(self, pupil: Pupil, steps: int) -> float:
        """Go on to so many steps; the seconds that it took."""
        self._wait()
        start, trainer, late = time.perf_counter(), pupil.trainer, None
        while trainer.step < steps:
            pending = trainer.train_step()
            if late is not None:
                late.read()  # which ends a training whose loss is not finite
            late = pending
        if late is not None:
            late.read()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def latents(self, pupils: Mapping[str, Pupil], prompts: Sequence[str]) -> Tensor:
        """Latents [N, C, F, H, W], one of each prompt, of the experts with these LoRAs."""
        found = []
        own = {stage: pupil.model for stage, pupil in pupils.items()}
        high, low = own.get("high", self.family.high), own.get("low", self.family.low)
        shape = (1, *latent_shape(LATENT_CHANNELS["wan2.1"], world.NUM_FRAMES, world.SIZE, world.SIZE))
        for start in range(0, len(prompts), AT_ONCE):
            part = tuple(prompts[start : start + AT_ONCE])
            noise = torch.cat([initial_noise(shape, EXAM_SEED + start + number) for number in range(len(part))])
            texts = torch.cat([self.text(prompt) for prompt in part])
            found.append(sample(high, low, noise.to(self.device), texts, self.text(""), SAMPLING))
        return torch.cat(found)

    def latents_of(self, sample: TrainSample) -> Tensor:
        """The cached latents of a sample, [C, F, H, W]."""
        return load_tensor(sample.latents_path, "latents", sample.name, sample.shape)

    @torch.no_grad()
    def encoded(self, scenes: Sequence[world.Scene]) -> Tensor:
        """Latents [N, C, F, H, W] of drawn clips."""
        video = torch.stack([torch.from_numpy(world.draw(scene)) for scene in scenes])
        return torch.cat([
            self.family.vae.encode(to_video(part.to(self.device))) for part in video.split(AT_ONCE)
        ])  # fmt: skip

    @torch.no_grad()
    def frames(self, latents: Tensor) -> Tensor:
        """Frames [N, F, H, W, 3] uint8 on the CPU."""
        return torch.cat([to_frames(self.family.vae.decode(part)).cpu() for part in latents.split(AT_ONCE)])


@contextmanager
def looked_at(pupils: Mapping[str, Pupil]) -> Iterator[None]:
    """Within it the models have the weights of their files, and are in eval mode."""
    with ExitStack() as stack:
        for pupil in pupils.values():
            stack.enter_context(pupil.trainer.shown())
            pupil.model.eval()
        try:
            yield
        finally:
            for pupil in pupils.values():
                pupil.model.train()


class Examiner:
    """Asks models what an exam has, and grades what they show."""

    def __init__(self, school: QuickSchool, exam: PairExam) -> None:
        self._school, self._exam = school, exam
        self._prompts = [prompt for _, prompt in exam.all]
        self._drawn = movements(school.encoded([scene for scene, _ in exam.all]))
        self.base = self._grade(school.latents({}, self._prompts))

    def look(self, pupils: Mapping[str, Pupil], caption: str) -> tuple[dict[str, float], float]:
        """The grades of the experts with these LoRAs, and how much moves in a clip of `caption`."""
        with looked_at(pupils):
            latents = self._school.latents(pupils, [*self._prompts, caption])
        return self._grade(latents[:-1]), movements(latents[-1:])[0]

    def _grade(self, latents: Tensor) -> dict[str, float]:
        look = see if self._exam.pair.move.attribute == "camera" else judge  # a look at the ground takes as long again
        verdicts = [look(clip.numpy()) for clip in self._school.frames(latents)]
        moves = [own / drawn for own, drawn in zip(movements(latents), self._drawn, strict=True)]
        return grade_pair(self._exam, verdicts, moves)


def held_out_loss(pupil: Pupil, others: Sequence[TrainSample] = ()) -> HeldOutLoss:
    """What `core.train.validation` measures, of all samples and noise levels in one forward. `others`: in their place."""
    trainer, job = pupil.trainer, pupil.job
    samples, middles = others or job.held_out_samples, (torch.arange(NUM_SIGMAS) + 0.5) / NUM_SIGMAS
    batch = load_batch(samples, [sample.text_path for sample in samples], job.data.conditioning)
    shape = batch.latents.shape[1:]
    sigmas = sigma_at(middles, job.timesteps, samples[0].shape).float().repeat(len(samples))
    noise = [sample_noise(shape, seed=VALIDATION_SEED, draw=draw) for draw in range(len(sigmas))]
    repeated = replace(
        batch,
        latents=batch.latents.repeat_interleave(NUM_SIGMAS, 0),
        context=batch.context.repeat_interleave(NUM_SIGMAS, 0),
    )
    with looked_at({job.stage: pupil}), torch.no_grad():
        losses = trainer.loss_at(repeated, torch.stack(noise), sigmas).view(len(samples), NUM_SIGMAS).cpu()
    return HeldOutLoss(losses.mean().item(), tuple(losses.mean(1).tolist()), tuple(losses.mean(0).tolist()))
