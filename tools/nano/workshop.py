"""Where concepts are taught: the nano encoders as the caches take them, data sets on disk, and jobs over them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ...core.data.encode import cache_latents, cache_text
from ...core.data.latents import unit_range
from ...core.data.pairs import data_spec
from ...core.data.scan import scan_folder
from ...core.data.store import Store
from ...core.errors import ModelFileError
from ...core.settings.dataset import DatasetOptions
from ...core.settings.job import DataSpec, Job
from ...core.train.build import build_job
from ...core.train.run_folder import RunFolder
from ...core.wan.checkpoint import inspect
from . import world
from .concepts import Concept, write_dataset
from .family import STAGES, Files
from .settings import Settings
from .text import TextEncoder
from .vae import load_vae


class NanoVideoEncoder:
    """The nano VAE as the caches take it: a `core.data.types.VideoEncoder`."""

    latent_format: Literal["wan2.1", "wan2.2"] = "wan2.1"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.identity = _file_digest(path)
        self._vae = load_vae(path).to(device)
        self._device = device

    def encode(self, frames: Tensor) -> Tensor:
        """[F, H, W, 3], uint8 or float 0..1, to normalised latents [C, (F-1)//4+1, H/8, W/8] float32 on the CPU."""
        video = unit_range(frames).permute(3, 0, 1, 2)[None] * 2 - 1  # [1, 3, F, H, W]
        return self._vae.encode(video.to(self._device))[0].cpu()


class NanoTextEncoder:
    """The nano umT5 as the caches take it: a `core.data.types.TextEncoder`."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.identity = _file_digest(path)
        self._encoder = TextEncoder(path, device)
        self.dim = int(self._encoder.model.config.d_model)

    def encode(self, caption: str) -> tuple[Tensor, bool]:
        """Caption to [num_tokens, dim] float32 on the CPU; captions of the world are far shorter than the limit."""
        return self.encode_batch([caption])[0]

    def encode_batch(self, captions: Sequence[str]) -> list[tuple[Tensor, bool]]:
        """As `encode` for each."""
        contexts, lengths = self._encoder.encode(captions)
        return [(row[:length].cpu(), False) for row, length in zip(contexts, lengths.tolist(), strict=True)]


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise ModelFileError(
            f"{path} can't be read ({error.strerror}): give a folder that holds a whole nano family."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where concepts are taught: the base's files, a folder for everything made, the device."""

    files: Files
    folder: Path
    device: str = "cpu"
    runs: str = "runs"  # folder of the runs below `folder`

    def identities(self) -> list[str]:
        """Digests of the base's files."""
        experts = [self.files.dit(stage) for stage in STAGES]
        return [_file_digest(path) for path in (*experts, self.files.vae, self.files.text_encoder)]

    def data(self, concept: Concept, settings: Settings) -> DataSpec:
        """The training set of a concept, written to disk and encoded; what is there already is used again."""
        clips, others, seed = settings.clips, settings.others, settings.loop.seed
        name = f"{concept.name}-{clips}-clips{f'-{others}-others' if others else ''}-seed-{seed}"
        folder = self.folder / "data" / name
        write_dataset(folder, concept, clips, seed, others=others)
        options = DatasetOptions(
            width=world.SIZE,
            height=world.SIZE,
            num_frames=world.NUM_FRAMES,
            fps=world.FPS,
            trigger_word="" if others else concept.trigger,
            bad_files="refuse",
            short_clips="refuse",
        )
        dataset = scan_folder(folder, options)
        store = Store(self.folder.absolute() / "cache")
        latents, _ = cache_latents(dataset, NanoVideoEncoder(self.files.vae, self.device), store)
        text, _ = cache_text(dataset.captions, NanoTextEncoder(self.files.text_encoder, self.device), store)
        return data_spec(latents, text)

    def jobs(self, concept: Concept, settings: Settings) -> dict[str, Job]:
        """One job for each stage that is trained."""
        data = self.data(concept, settings)
        settings = replace(settings, device=self.device)
        return {
            stage: build_job(
                inspect(self.files.dit(stage).absolute()),  # a worker has another working directory
                data,
                settings,
                name=concept.name,
                stage=stage,
                trigger_word=concept.trigger,
            )
            for stage in settings.stages
        }

    def run_folder(self, job: Job) -> RunFolder:
        """The folder of a job, with the job in it."""
        folder = RunFolder(self.folder.absolute() / self.runs / f"{job.name}_{job.stage}_{job.key}")
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_job(job)
        return folder
