"""Videos without and with a LoRA from files alone: our own sampler, the encoders without ComfyUI.

F frames, H W pixels, C channels, f h w latent frames, height, width, S text tokens, D text width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..adapters.formats import LoraModule
from ..adapters.other_files import OtherModule, read_adapter
from ..adapters.ship import Slot
from ..adapters.transfer import model_shapes, transfer_report
from ..data.types import TextEncoder
from ..encoders.text import load_text_encoder
from ..encoders.tokenizer import find_tokenizer
from ..encoders.vae import WanVideoEncoder, load_video_encoder
from ..encoders.weights import open_weights
from ..errors import ConfigError
from ..facts import PATCH, latent_shape, official_boundary, official_shift, pixels_per_latent
from ..limits import MAX_TEXT, check_number
from ..packages import check_packages
from ..paths import path_problem, shown
from ..sample.sampler import OnStep, SampleOptions, initial_noise, sample
from ..sample.samplers import SAMPLERS
from ..settings.dataset import DatasetOptions
from ..wan.checkpoint import inspect
from ..wan.config import Variant, WanConfig
from .experts import ExpertModel, Experts
from .given import GivenFrames, check_given, given_forward
from .trigger import fill_prompts

MAX_PIXELS = 32768  # on a side; and frames


@dataclass(frozen=True, kw_only=True)
class Files(GivenFrames):
    """What a video is made with. Models and LoRAs are a single model's, or those of both experts."""

    models: Mapping[Slot, Path]
    loras: Mapping[Slot, Path]
    beside: Mapping[Slot, Path] = field(
        default_factory=dict
    )  # LoRAs that are on without and with those, as of few steps
    vae: Path
    text_encoder: Path
    tokenizer: Path | None = None  # None: inside the text encoder or beside it

    def __post_init__(self) -> None:
        if set(self.models) not in ({"single"}, {"high", "low"}):
            given = ", ".join(self.models) or "none"
            raise ConfigError(
                f"the models given are: {given}; give a single model, or the high and the low noise expert."
            )
        for slot in (*self.loras, *self.beside):
            if slot not in self.models:
                raise ConfigError(
                    f"a LoRA is given for '{slot}', but the models are {' and '.join(self.models)}: give that one too."
                )
        if not self.loras:
            raise ConfigError("no LoRA is given: there is nothing to preview.")

    def check(self) -> None:
        """ConfigError or ModelFileError for a file that is not there, or is none: a pipe is never read to its end."""
        files = {"the VAE": self.vae, "the text encoder": self.text_encoder, "the tokenizer": self.tokenizer}
        files |= {f"the model ({slot})": path for slot, path in self.models.items()}
        files |= {f"the LoRA ({slot})": path for slot, path in self.loras.items()}
        files |= {f"the LoRA beside it ({slot})": path for slot, path in self.beside.items()}
        files |= {f"the {name}": path for name, path in self.images.items()} | {"CLIP vision": self.clip_vision}
        for name, path in files.items():
            problem = path_problem(path, folders=True) if path is not None else ""
            if problem:
                raise ConfigError(f"{name} is {shown(path)}, which {problem}: check its name.")
        inner = self.text_encoder / "text_encoder"
        # Their headers, before the VAE is loaded.
        find_tokenizer(open_weights(inner if inner.is_dir() else self.text_encoder), self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """One video. shift and boundary 0: the official ones of the model."""

    prompt: str
    negative_prompt: str = ""
    width: int = 832
    height: int = 480
    num_frames: int = 33
    steps: int = 20
    cfg: float = 3.5
    seed: int = 1
    sampler: str = "euler"  # ComfyUI's of the same name
    scheduler: str = "simple"
    shift: float = 0.0
    boundary: float = 0.0
    strength: float = 1.0  # of the LoRA
    compare: bool = True  # also without the LoRA

    def __post_init__(self) -> None:
        DatasetOptions(width=self.width, height=self.height, num_frames=self.num_frames)  # the same rules
        for name, most in (("width", MAX_PIXELS), ("height", MAX_PIXELS), ("num_frames", MAX_PIXELS)):
            check_number(getattr(self, name), name, 1, most)
        check_number(self.seed, "seed", -(2**63), 2**64 - 1)
        for name in ("shift", "boundary", "strength"):
            check_number(getattr(self, name), name, -1000, 1000)
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if len(text) > MAX_TEXT or any("\ud800" <= character <= "\udfff" for character in text):
                raise ConfigError(f"{name} is '{shown(text)}', which is too long, or holds bytes that are no text.")

    def sampling(self, variant: Variant, *, has_experts: bool) -> SampleOptions:
        """How the model of this variant samples."""
        return SampleOptions(
            steps=self.steps,
            shift=self.shift or official_shift(variant, has_experts=has_experts),
            cfg=self.cfg,
            sampler=self.sampler,
            scheduler=self.scheduler,
            boundary=self.boundary or official_boundary(variant),
            seeds=(self.seed,),
        )


@dataclass(frozen=True)
class VideoPlan:
    """What was checked before anything large is read: experts by slot, their shape, and notes for the user."""

    files: Files
    options: VideoOptions
    experts: dict[Slot, ExpertModel]
    config: WanConfig
    notes: tuple[str, ...]

    @property
    def sampling(self) -> SampleOptions:
        """How it is sampled."""
        return self.options.sampling(self.config.variant, has_experts="high" in self.experts)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """C, f, h, w."""
        o = self.options
        return latent_shape(self.config.out_dim, o.num_frames, o.height, o.width)


def plan_video(files: Files, options: VideoOptions) -> VideoPlan:
    """Read the headers and the LoRAs, whose trigger word takes the place of [trigger] in prompts.

    ConfigError or ModelFileError if something does not fit.
    """
    files.check()
    check_packages(SAMPLERS.get(options.sampler).packages)
    prompts = fill_prompts(files.loras.values(), prompt=options.prompt, negative_prompt=options.negative_prompt)
    options = replace(options, **prompts)
    experts: dict[Slot, ExpertModel] = {}
    notes: list[str] = []
    for slot, model in files.models.items():
        info = inspect(model)
        loras: list[dict[str, LoraModule | OtherModule]] = []
        for path in (files.loras.get(slot), files.beside.get(slot)):
            file = None if path is None else read_adapter(path)
            report = None if file is None else transfer_report(file, model_shapes(info.config))
            loras.append({} if file is None or report is None else {name: file.modules[name] for name in report.placed})
            notes += () if report is None else report.notes
        experts[slot] = ExpertModel(info, *loras)
    first, *others = experts.values()
    if others and others[0].info.config != first.info.config:
        raise ConfigError(
            f"{first.info.path.name} and {others[0].info.path.name} are no two experts of one model: their sizes or kinds "
            "differ; give the high and the low noise file of the same Wan 2.2 model."
        )
    made = VideoPlan(files, options, experts, first.info.config, tuple(notes))
    check_given(files, made.config, first.info.path.name)
    _check_size(made)
    made.sampling  # noqa: B018  # its own checks
    return made


def generate(made: VideoPlan, device: torch.device, on_step: OnStep | None = None) -> np.ndarray:
    """Frames [K, F, H, W, 3] uint8: K is 2, without the LoRA and with it, or 1, with it alone.

    The VAE, the text encoder, CLIP vision and the experts are read one after another. ModelFileError or ConfigError if
    the encoders are not this model's.
    """
    files, o = made.files, made.options
    video = load_video_encoder(files.vae, device)  # first: it is small, and a wrong one should not cost a sampling
    _check_vae(made, video)
    context, negative = _encode_prompts(made, device)
    forward = given_forward(files, made.config, (o.num_frames, o.height, o.width), video, device)
    experts = Experts(device, forward, strength=o.strength, compare=o.compare)
    models = [experts.model(expert) for expert in made.experts.values()]
    noise = initial_noise((1, *made.latent_shape), o.seed).repeat(2 if o.compare else 1, 1, 1, 1, 1).to(device)
    low = models[1] if len(models) > 1 else None
    latents = sample(models[0], low, noise, context, negative, made.sampling, on_step)
    experts.close()
    return video.decode(latents).numpy()


def _check_size(made: VideoPlan) -> None:
    step = PATCH * pixels_per_latent(made.config.out_dim)
    for name, value in (("width", made.options.width), ("height", made.options.height)):
        if value % step:
            raise ConfigError(f"{name} is {value}, but this model needs a multiple of {step}.")


def _check_vae(made: VideoPlan, video: WanVideoEncoder) -> None:
    if video.latent_format != made.config.latent_format:
        names = {"wan2.1": "wan_2.1_vae.safetensors", "wan2.2": "wan2.2_vae.safetensors"}
        raise ConfigError(
            f"{made.files.vae} is the VAE of {video.latent_format.replace('wan', 'Wan ')}, which this model was not trained "
            f"with: give {names[made.config.latent_format]}."
        )


def _encode_prompts(made: VideoPlan, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Contexts [1, S, D] of the prompt and, where guidance needs it, of the negative one. The encoder is let go after."""
    encoder = load_text_encoder(made.files.text_encoder, device, tokenizer=made.files.tokenizer)
    if encoder.dim != made.config.text_dim:
        raise ConfigError(
            f"{made.files.text_encoder} gives embeddings of width {encoder.dim}, but the model needs "
            f"{made.config.text_dim}: give the umT5 text encoder that belongs to it."
        )
    context = _context(encoder, made.options.prompt, made.config.text_len)
    needs_negative = made.options.cfg != 1.0
    negative = _context(encoder, made.options.negative_prompt, made.config.text_len) if needs_negative else None
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return context, negative


def _context(encoder: TextEncoder, prompt: str, text_len: int) -> Tensor:
    rows, _ = encoder.encode(prompt)  # [S, D]
    return torch.nn.functional.pad(rows, (0, 0, 0, text_len - rows.shape[0]))[None]
