"""Previews of a run: videos sampled now and then with the LoRA as it is then; how, see `preview_sampling`.

Text and size are those of the job's prompts, or of one sample; the frames that image-to-video is given are that sample's.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from ..encoders.vae import load_video_encoder
from ..errors import DatasetError, RunError, WanTrainError
from ..facts import clip_size, num_tokens
from ..gpu_limit import room
from ..paths import shown
from ..plan.recovery import first_line
from ..sample.previews import Shot, preview_shots
from ..settings.job import Job
from ..shortage import free_caches, is_out_of_memory, shortage_of
from ..words import counted
from .batches import load_context
from .events import EventWriter
from .loop import StepReport, Trainer
from .other_expert import OtherExpert, beside_own, newest_lora, open_other, open_own
from .preview_folder import PreviewFolder, Shown, write_video
from .preview_sampling import sample_shots
from .run_folder import RunFolder

WAIT_S, POLL_S = 120.0, 0.1


class _BrokenOffError(Exception):
    """A stop was asked for while a preview was sampled."""


class Preview:
    """A preview every `every` steps of the job's `previews`, and at the end.

    Whoever holds the lock of the folder decodes it with a VAE of its own: the run then waits for that, with as little as
    possible in its hands. Else the run decodes it, where the job names a VAE; else the latents are kept.
    """

    def __init__(
        self,
        folder: RunFolder,
        events: EventWriter,
        should_stop: Callable[[], bool],
        *,
        is_stopping: Callable[[], bool] | None = None,
        make_room: Callable[[], None] = lambda: None,
        is_shared: bool = False,
        took: Callable[[float], None] = lambda _seconds: None,
    ):
        """`make_room` gives the GPU's memory back that is not needed between two steps, for who decodes.

        `is_stopping`: whether all ranks of the run know that it shall stop; by default what `should_stop` says on this one.
        `is_shared`: all of them run the model together; else the first does alone, and the others wait for it. `took` is told
        the seconds of each that was made.
        """
        self._run, self._folder = folder.path, PreviewFolder.of(folder)
        self._events, self._should_stop = events, should_stop
        self._is_stopping = is_stopping or should_stop
        self._make_room, self._is_shared, self._took = make_room, is_shared, took
        # For an expert from a file to stay: ranks would have to be of one mind.
        self._room = None if is_shared else room
        self._warned: set[str] = set()

    def needs_weights(self, trainer: Trainer) -> bool:
        return _is_due(trainer.step, trainer.job)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if _is_due(report.step, trainer.job) and not self._is_stopping():
            self.make(trainer)

    def before_first_step(self, trainer: Trainer) -> None:
        """The preview of a run that begins, where the job wants one."""
        options = trainer.job.previews
        if options.every and options.at_start and trainer.step == 0 and not self._is_stopping():
            self.make(trainer)

    def make(self, trainer: Trainer) -> None:
        """The preview of the trainer's step, now."""
        with trainer.aside():
            self._make(trainer)

    def _make(self, trainer: Trainer) -> None:
        step, start, world = trainer.step, time.perf_counter(), trainer.team.world
        shots = self._readable(trainer, preview_shots(trainer.job, step))
        if not shots:
            return
        other, told = self._open_other(trainer)
        several = f" of {len(shots)} prompts" if len(shots) > 1 else ""
        self._events.write("status", message=f"step {step}: sampling a preview{several}{told}")
        is_busy = world.is_first or self._is_shared
        is_apart = not self._is_shared and _is_larger(shots, trainer.job)  # on all ranks alike: within it none votes
        with trainer.shown():
            act = partial(self._sample_or_tell, trainer, shots, other) if is_busy else _nothing
            latents = self._sample_if_it_fits(act, shots) if is_apart else trainer.attempt(act, step)
        if latents is not None and world.is_first:
            self._keep(trainer, shots, latents, start)
        world.wait_for_all()

    def _readable(self, trainer: Trainer, shots: Sequence[Shot]) -> list[Shot]:
        """Those whose texts are there: a cache may be emptied while a run goes on."""
        world = trainer.team.world
        are_there = world.from_first([self._has_texts(shot) for shot in shots] if world.is_first else None)
        return [shot for shot, is_there in zip(shots, are_there, strict=True) if is_there]

    def _has_texts(self, shot: Shot) -> bool:
        try:
            for path in [shot.text_path, *([shot.negative_path] if shot.sampling.cfg != 1.0 else [])]:
                load_context(path, f"the prompt {shown(shot.name)}" if shot.name else "a preview's caption")
        except DatasetError as error:
            self._warn(f"previews go on without this one: {error}")
            return False
        return True

    def _open_other(self, trainer: Trainer) -> tuple[OtherExpert | None, str]:
        """The expert that is not trained, with its newest LoRA, and a clause that says so; None where it is not there."""
        job, world = trainer.job, trainer.team.world
        if job.stage == "both":
            return None, ", through both experts"
        if job.other_expert is None:
            return None, ""
        beside = [(Path(job.previews.other_lora), 1.0)] if job.previews.other_lora else []
        found = world.from_first(newest_lora(self._run, job) if world.is_first else None)
        for path, step in (found, (None, 0)) if found else ((None, 0),):
            open_it = partial(open_other, job.other_expert, trainer.device, path, beside=beside, room=self._room)
            other, reason = self._open_on_all(trainer, open_it)
            if other is None:
                where = "alone" if path is None else f"without the other expert's LoRA {path.name}"
                self._warn(f"previews go through the {job.stage} noise expert {where}: {reason}")
                continue
            name = "plain" if path is None else f"with its LoRA of step {step}"
            name += f", {beside[0][0].name} on it" if beside else ""
            return other, f", through both experts (the other one {name})"
        return None, ""

    def _open_own(self, trainer: Trainer) -> OtherExpert | None:
        """The expert that is trained as it is in previews alone; None: as it is in training."""
        beside = beside_own(trainer.job)
        if beside is None:
            return None
        open_it = partial(open_own, trainer.job, trainer.model, trainer.device, beside, self._room)
        own, reason = self._open_on_all(trainer, open_it)
        if own is None:
            self._warn(f"previews are made with the model as it is in training, without preview_lora: {reason}")
        return own

    def _open_on_all(self, trainer: Trainer, open_it: Callable[[], OtherExpert]) -> tuple[OtherExpert | None, str]:
        """None where it can't be opened, with the reason. Ranks that run the model together have it all of them, or none."""
        found, reason = None, ""
        try:
            found = open_it()
        except (OSError, WanTrainError) as error:
            reason = first_line(error)
        reasons = trainer.team.world.tell(reason) if self._is_shared else [reason]
        first = next(filter(None, reasons), "")
        return (None if first else found), first

    def _sample_or_tell(
        self, trainer: Trainer, shots: Sequence[Shot], other: OtherExpert | None
    ) -> list[Tensor] | None:
        """As `_sample`; a file that is gone or was replaced costs the other expert, or this preview, and not the run."""
        for one in (other, None) if other is not None else (None,):
            try:
                return self._sample(trainer, shots, one)
            except (OSError, WanTrainError) as error:
                if self._is_shared or shortage_of(error):  # the other ranks are within the same forward
                    raise
                how = "are left out" if one is None else f"go through the {trainer.job.stage} noise expert alone"
                self._warn(f"previews {how}: {first_line(error)}")
        return None

    def _sample(self, trainer: Trainer, shots: Sequence[Shot], other: OtherExpert | None) -> list[Tensor] | None:
        """The latents of each; None where a stop was asked for meanwhile."""

        def on_step(_done: int, _total: int) -> None:
            should_stop = self._should_stop()
            if trainer.team.world.from_first(should_stop) if self._is_shared else should_stop:
                raise _BrokenOffError

        own = self._open_own(trainer)
        files = [each for each in (other, own) if each is not None]

        def act() -> list[Tensor]:
            return sample_shots(trainer, shots, other=other, own=own, on_step=on_step)

        try:
            return act()
        except _BrokenOffError:
            return None
        except Exception as error:  # where memory is out, there may be enough without what only makes it faster
            if not (is_out_of_memory(error) and any(each.stays for each in files)):
                raise
        finally:
            _let_go(files)
        with suppress(_BrokenOffError):
            return act()
        return None

    def _sample_if_it_fits(self, act: Callable[[], list[Tensor] | None], shots: Sequence[Shot]) -> list[Tensor] | None:
        """For videos that are larger than what is trained on: no reason to end a run, or to hold its model otherwise."""
        try:
            return act()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._make_room()
        free_caches()
        frames, height, width = clip_size(max((shot.shape for shot in shots), key=num_tokens))
        self._warn(
            f"previews of {width}x{height} with {counted(frames, 'frame')} do not fit into memory, and are left out: lower "
            "preview_width, preview_height or preview_frames."
        )
        return None

    def _keep(self, trainer: Trainer, shots: Sequence[Shot], latents: Sequence[Tensor], start: float) -> None:
        step = trainer.step
        try:
            paths = self._folder.write_all(step, latents, [Shown(shot.name, shot.prompt, shot.seed) for shot in shots])
        except RunError as error:
            self._warn(f"the preview of step {step} is not kept. {error}")
            return
        path = paths[0]
        self._make_room()
        is_awaited = self._folder.has_decoder()
        if not is_awaited:
            path = self._decode(trainer, step) or path
        seconds = round(time.perf_counter() - start, 3)
        shown_path = path.relative_to(self._folder.path.parent).as_posix()
        several = {"prompts": len(shots)} if len(shots) > 1 else {}
        self._events.write("preview", step=step, path=shown_path, seconds=seconds, **several)
        if is_awaited:
            self._await_decoder(step, WAIT_S * len(shots))
        seconds = time.perf_counter() - start
        self._events.write("shown", step=step, seconds=round(seconds, 3))
        self._took(seconds)

    def _decode(self, trainer: Trainer, step: int) -> Path | None:
        """The first video, or None: a preview that can't be shown is no reason to end a run."""
        job = trainer.job
        if not job.preview_vae:
            self._warn(
                f"previews are kept as latents in {self._folder.path}: no VAE is named that could decode them, and "
                "nobody who follows this run has one."
            )
            return None
        try:
            encoder = load_video_encoder(Path(job.preview_vae), trainer.device)
            paths = [
                write_video(self._folder.video_path(step, number), encoder.decode(latents).numpy(), job.data.fps)
                for number, latents in self._folder.read_all(step)
            ]
            return paths[0]
        except Exception as error:  # of files, packages and memory alike
            self._warn(
                f"previews are kept as latents in {self._folder.path}, as they can't be decoded: {first_line(error)}."
            )
            return None
        finally:
            free_caches()

    def _await_decoder(self, step: int, patience_s: float = WAIT_S) -> None:
        mark, end = self._folder.mark_path(step), time.monotonic() + patience_s
        with suppress(OSError):  # of a folder that has become somebody else's
            while not mark.exists() and time.monotonic() < end:
                if self._should_stop() or not self._folder.has_decoder():
                    return
                time.sleep(POLL_S)
            mark.unlink(missing_ok=True)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._events.write("warning", message=sentence)


def _let_go(files: Sequence[OtherExpert]) -> None:
    """Experts that stayed on the device make room again, for good."""
    had = [each.let_go() for each in files]
    if any(had):
        free_caches()


def _nothing() -> None:
    """On a rank that waits for the first."""


def _is_larger(shots: Sequence[Shot], job: Job) -> bool:
    """Whether one of the videos has more tokens than all that is trained on and validated."""
    samples = (*job.training_samples, *job.held_out_samples)
    return max(num_tokens(shot.shape) for shot in shots) > max(num_tokens(sample.shape) for sample in samples)


def _is_due(step: int, job: Job) -> bool:
    every = job.previews.every
    return every > 0 and (step % every == 0 or step == job.loop.steps)
