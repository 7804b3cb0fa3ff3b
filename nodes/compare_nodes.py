"""Checkpoints of runs side by side: each with each prompt and strength, sampled by the host with the user's models."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from safetensors.torch import load_file

from ..core.disk import check_writable, file_digest
from ..core.errors import ConfigError, WanTrainError
from ..core.facts import official_boundary, official_shift
from ..core.generate.grid import video_grid
from ..core.generate.trigger import fill_prompts
from ..core.names import check_below
from ..core.safetensors_file import write_safetensors
from ..core.settings.dataset import DatasetOptions
from ..core.train.chosen import run_of
from ..core.train.compare import (
    At,
    Pair,
    left_out,
    loras_of,
    num_cells,
    pairs_of,
    proposals,
    read_choice,
    read_prompts,
    read_strengths,
    run_names,
)
from ..core.train.copies import run_of_copy
from ..core.train.run_folder import RunFolder
from . import host
from .host import folders
from .host.identity import digest_of, model_digest
from .host.sampling import (
    GivenImages,
    SamplingOptions,
    Start,
    decode,
    encode_prompt,
    makes_videos_from_images,
    sample_latents,
    start_from,
    video,
    with_lora,
    with_shift,
)
from .inputs import check_known, checked
from .model_nodes import CATEGORY
from .sockets import LoraHandle, WanLora

log = logging.getLogger(__name__)
NONE = "none"
MAX_CELLS = 400
_VERSION = 1  # of what a cell's key is made of


class CompareCheckpoints(io.ComfyNode):
    """A grid of videos: checkpoints beside each other, prompts and strengths below each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCompareCheckpoints",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="Compare Checkpoints (Wan)",
            category=CATEGORY,
            description="An X/Y grid of a training's checkpoints: each with each prompt and strength, from the same seed, with"
            " your own models and ComfyUI's own sampler. Checkpoints of both experts are paired by the nearest step. What was"
            " made before is kept and not made again, so it can be stopped at any time and goes on.",
            search_aliases=["xy plot", "grid", "checkpoint", "epoch", "best lora"],
            inputs=_inputs(),
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The grid, with titles."),
                io.Image.Output("grid", display_name="grid", tooltip="Its frames."),
                io.Image.Output(
                    "cells", display_name="cells", is_output_list=True, tooltip="A batch of frames for each video alone."
                ),
                io.String.Output(
                    "labels", display_name="labels", is_output_list=True, tooltip="What each of the cells is."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls,
        checkpoints: str | None = None,
        strengths: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
    ) -> bool | str:
        """None: comes over a wire, and is checked when it is there."""
        try:
            check_known(cls, {"width": width, "height": height, "num_frames": num_frames})
            DatasetOptions(width=width or 16, height=height or 16, num_frames=num_frames or 1)
            read_choice(checkpoints or "all")
            read_strengths(strengths or "1")
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, high_run: str = NONE, low_run: str = NONE, **_: Any) -> str:
        """Other checkpoints make another grid."""
        runs = [_run(name, "high_run") for name in (high_run, low_run)]
        steps = [list(loras_of(run, folders.loras_paths())) if run else [] for run in runs]
        return f"{host.vanished()} {steps}"

    @classmethod
    @checked
    def execute(
        cls, high_run: str, low_run: str, high: Any, clip: Any, vae: Any, low: Any | None = None, **settings: Any
    ) -> io.NodeOutput:
        s, show = settings, _shower(cls.hidden.unique_id)
        runs = _run_of(s.get("trained_high"), high_run, "high"), _run_of(s.get("trained_low"), low_run, "low")
        if runs[1] and low is None:
            raise ConfigError("low_run is chosen, but no low noise model is connected to low.")
        pairs = pairs_of(*runs, s["checkpoints"], folders.loras_paths())
        if low is None and any(pair.low for pair in pairs):
            raise ConfigError("high_run is of one LoRA for both experts, but no low noise model is connected to low.")
        strengths, texts = read_strengths(s["strengths"]), read_prompts(s["prompts"])
        number = num_cells(pairs, strengths, texts, with_base=s["with_base"])
        if number > MAX_CELLS:
            raise ConfigError(f"that is {number} videos, and {MAX_CELLS} are the most: choose fewer checkpoints.")
        maker = _Maker(high, low, _options(s, high, has_low=low is not None), number)
        maker.notes += [f"- {sentence}" for sentence in left_out(runs)]
        given = GivenImages(s.get("start_image"), s.get("end_image"), s.get("clip_vision"))
        prompts = [_prompt(text, s["negative_prompt"], pairs, clip, vae, maker, given) for text in texts]
        columns = [*([Pair()] if s["with_base"] else []), *pairs]
        rows = [(prompt, strength) for prompt in prompts for strength in strengths]
        latents = [[maker.cell(pair, strength, prompt, show) for pair in columns] for prompt, strength in rows]
        frames: list[list[torch.Tensor]] = []
        for row in latents:
            show(f"decoding: {len(frames) + 1} / {len(rows)}", len(frames), len(rows))
            frames.append([decode(vae, {"samples": one}) for one in row])
        titles = [_row_title(prompt.text, strength, strengths) for prompt, strength in rows]
        grid = video_grid(
            list(zip(titles, frames, strict=True)), [pair.label for pair in columns], width=s["cell_width"]
        )
        made = f"{len(rows)} x {len(columns)} videos, {maker.num_made} new"
        text = "\n".join([made, *proposals(runs), *maker.notes])
        labels = [f"{pair.label}, {title}" for title in titles for pair in columns]
        cells = [one for row in frames for one in row]
        return io.NodeOutput(video(grid, s["fps"]), grid, cells, labels, ui={"text": [text]})


@dataclass(frozen=True)
class _Prompt:
    """A prompt, and what sampling starts from with it."""

    text: str
    start: Start
    identity: str


class _Maker:
    """Samples cells, or finds them on the disk: their latents, by a digest of all that decides them."""

    def __init__(self, high: Any, low: Any | None, options: SamplingOptions, total: int):
        self.high, self.options, self.num_made = high, options, 0
        self._seen: set[Path] = set()
        self._total = total  # of cells, each counted once
        self.notes: list[str] = []
        self._identity = [_VERSION, model_digest(high), model_digest(low), asdict(options)]
        self._models = [model and with_shift(model, options.shift) for model in (high, low)]
        self._folder = host.work_path() / "compared"
        check_writable(self._folder)

    def cell(self, pair: Pair, strength: float, prompt: _Prompt, show: Callable[..., None]) -> torch.Tensor:
        """Latents [1, C, F, H, W] of one video."""
        host.raise_if_interrupted()
        on = [(one, strength) if one and strength else None for one in (pair.high, pair.low)]
        names = [[_file_digest(one[0].lora), one[1]] if one else None for one in on]
        path = self._folder / f"{digest_of(self._identity, prompt.identity, names)[:40]}.safetensors"
        done = len(self._seen)
        self._seen.add(path)
        found = _read(path)
        if found is not None:
            return found
        self.num_made += 1
        at = "" if pair == Pair() else f", strength {strength:g}"
        show(f"{done + 1} / {self._total}: sampling {pair.label}{at}: {prompt.text}", done, self._total)
        high, low = (self._with(model, one) for model, one in zip(self._models, on, strict=True))
        latents = sample_latents(high, low, prompt.start, self.options)["samples"]
        write_safetensors(path, {"latents": latents.float().cpu().contiguous()}, {"format": "pt"})
        return latents

    def _with(self, model: Any, on: tuple[At, float] | None) -> Any:
        if model is None or on is None:
            return model
        patched, notes = with_lora(model, on[0].lora, on[1])
        self.notes += [f"- {note}" for note in notes if f"- {note}" not in self.notes]
        return patched


def _prompt(
    text: str, negative: str, pairs: Sequence[Pair], clip: Any, vae: Any, maker: _Maker, given: GivenImages
) -> _Prompt:
    loras = [one.lora for one in (pairs[0].high, pairs[0].low) if one]
    texts = fill_prompts(loras, prompts=text, negative_prompt=negative)
    both = encode_prompt(clip, texts["prompts"]), encode_prompt(clip, texts["negative_prompt"])
    start = start_from(maker.high, vae, *both, maker.options, given)
    return _Prompt(texts["prompts"], start, digest_of(start.positive, start.negative, start.latents))


def _options(s: dict[str, Any], high: Any, *, has_low: bool) -> SamplingOptions:
    variant = "i2v" if makes_videos_from_images(high) else "t2v"
    names = ("width", "height", "num_frames", "steps", "cfg", "seed", "sampler", "scheduler")
    return SamplingOptions(
        shift=s["shift"] or official_shift(variant, has_experts=has_low),
        boundary=s["boundary"] or official_boundary(variant),
        **{name: s[name] for name in names},
    )


def _run(name: str, field: str) -> RunFolder | None:
    """A run by its name; ConfigError if it has gone."""
    if name == NONE:
        return None
    check_below(name, field)
    run = RunFolder(host.runs_path() / name)
    if not run.is_there:
        raise ConfigError(f"{field} is {name}, and there is no such run (any more): press R, and choose again.")
    return run


def _run_of(trained: LoraHandle | None, name: str, which: str) -> RunFolder | None:
    """That of the LoRA on the wire, else the chosen one."""
    if trained is None:
        return _run(name, f"{which}_run")
    run = run_of(trained.path) or run_of_copy(trained.path, host.runs_path())
    if run is None:
        raise ConfigError(
            f"trained_{which} is {trained.path.name}, which is of no run that is there: connect the lora output of Train LoRA"
            " Stage, or a checkpoint that a run has copied to the loras folder."
        )
    return run


def _row_title(text: str, strength: float, strengths: Sequence[float]) -> str:
    return f"strength {strength:g}: {text}" if len(strengths) > 1 else text


def _shower(node_id: Any) -> Callable[[str, int, int], None]:
    def show(text: str, done: int, total: int) -> None:
        host.show_text(node_id, text)
        host.show_progress(node_id, done, total)

    return show


def _read(path: Path) -> torch.Tensor | None:
    """None where it is not there, or is damaged: it is then made again."""
    try:
        return load_file(path)["latents"] if path.is_file() else None
    except Exception:  # whatever the library raises for the bytes that it finds
        log.warning("%s is damaged, and is made again", path)
        return None


def _file_digest(path: Path) -> str:
    try:
        stat = path.stat()
        return _digest_at(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} went away while it was compared: a run that trains on keeps its newest checkpoints alone (keep_last)."
            " Press Run again: videos that were made are kept."
        ) from error


@lru_cache(maxsize=1000)
def _digest_at(path: Path, _size: int, _changed: int) -> str:
    return file_digest(path)[1]


def _inputs() -> list[Any]:
    runs = [NONE, *run_names(host.runs_path())]
    return [
        io.Combo.Input("high_run", options=runs, default=NONE,
                       tooltip="The run of the high noise expert, or of a single model. Press R for new ones."),
        io.Combo.Input("low_run", options=runs, default=NONE, tooltip="The run of the low noise expert."),
        io.Model.Input("high", tooltip="The high noise model, or the single model."),
        io.Model.Input("low", optional=True, tooltip="The low noise model; leave empty for a single model."),
        io.Clip.Input("clip", tooltip="The umT5 text encoder."),
        io.Vae.Input("vae", tooltip="The Wan VAE."),
        WanLora.Input("trained_high", optional=True,
                      tooltip="In place of high_run: the lora output of Train LoRA Stage, whose run is compared at its end;"
                      " or a checkpoint that was copied to the loras folder, by LoRA from File, whatever its name is now."),
        WanLora.Input("trained_low", optional=True, tooltip="In place of low_run."),
        io.Image.Input("start_image", optional=True, tooltip="For image-to-video models: the first frame."),
        io.Image.Input("end_image", optional=True, tooltip="For FLF2V and I2V-A14B: the last frame."),
        io.ClipVision.Input("clip_vision", optional=True, tooltip="For Wan 2.1 image-to-video: clip_vision_h."),
        io.String.Input("checkpoints", default="all",
                        tooltip="all; last 3; every 2; best; or steps such as 500, 1000. With two runs those of high_run, each"
                        " with the nearest of low_run. Copies in the loras folder count, too."),
        io.String.Input("strengths", default="1", tooltip="Strengths of the LoRA, such as 0.8, 1. A row for each."),
        io.String.Input("prompts", multiline=True, default="",
                        tooltip="A prompt a line; each gets a row. [trigger] becomes the trigger word that the LoRA names."),
        io.String.Input("negative_prompt", multiline=True, default="", tooltip="What to avoid; used when cfg is above 1."),
        *_sampling_inputs(),
    ]  # fmt: skip


def _sampling_inputs() -> list[Any]:
    return [
        io.Int.Input("width", default=480, min=16, max=4096, step=16, tooltip="Width in pixels, a multiple of 16."),
        io.Int.Input("height", default=272, min=16, max=4096, step=16, tooltip="Height in pixels, a multiple of 16."),
        io.Int.Input("num_frames", default=33, min=1, max=1025, step=4, tooltip="Number of frames, 4n+1."),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps, over both experts."),
        io.Float.Input("cfg", default=3.5, min=0.0, max=30.0, step=0.1, tooltip="Guidance scale. 1: off, twice as fast."),
        io.Int.Input("seed", default=1, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                     tooltip="Seed of the noise, the same for all."),
        io.Boolean.Input("with_base", default=True, tooltip="Also a column without the LoRA."),
        io.Float.Input("shift", default=0.0, min=0.0, max=100.0, step=0.1, advanced=True,
                       tooltip="Time shift of the sampler. 0: the official value, as in Preview LoRA."),
        io.Float.Input("boundary", default=0.0, min=0.0, max=0.999, step=0.005, round=0.001, advanced=True,
                       tooltip="Noise level where the low noise expert takes over. 0: the official one."),
        io.Combo.Input("sampler", options=host.SAMPLERS, default="euler", advanced=True, tooltip="The sampler."),
        io.Combo.Input("scheduler", options=host.SCHEDULERS, default="simple", advanced=True,
                       tooltip="How the noise levels are spaced."),
        io.Int.Input("cell_width", default=0, min=0, max=4096, step=16, advanced=True,
                     tooltip="Make each video in the grid smaller to this width. 0: as it is."),
        io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=1.0, advanced=True,
                       tooltip="Frames per second of the video."),
    ]  # fmt: skip


NODES = [CompareCheckpoints]
