"""Decoding the previews of a run with the VAE on the training node."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..core.data.latents import LatentFormat
from ..core.data.types import LatentCache
from ..core.encoders.vae import denormalise_latents
from ..core.errors import ConfigError
from ..core.train.preview_folder import PreviewFolder, write_video
from . import host
from .host.sampling import decode

log = logging.getLogger(__name__)


class PreviewDecoder:
    """Makes videos of latents; one that fails leaves a sentence in `notes`, and the run goes on."""

    def __init__(self, vae: Any, latents: LatentCache):
        """ConfigError if the VAE is not of the kind that `latents` were cached with."""
        channels = latents.entries[0].shape[0]
        if vae.latent_channels != channels:
            raise ConfigError(
                f"the VAE on vae makes latents of {vae.latent_channels} channels, but those of this training have {channels}: "
                "connect the VAE that Cache Latents has."
            )
        self._vae, self._fps = vae, latents.fps
        self._format: LatentFormat = latents.latent_format
        self.notes: list[str] = []

    def show(self, folder: PreviewFolder, step: int) -> Path | None:
        """Decode the videos of a step, tell the run that waits for them, and give the memory back; the last one's path."""
        path = None
        try:
            for number, normalised in folder.read_all(step):
                latents = denormalise_latents(normalised, self._format)
                frames = decode(self._vae, {"samples": latents[None]})  # [F, H, W, 3] in 0..1
                pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
                path = write_video(folder.video_path(step, number), pixels, self._fps)
            return path
        except host.Interrupted:
            host.interrupt_again()  # taken up by who follows the run: it must stop with a checkpoint
        except Exception as error:  # whatever a VAE of somebody's may raise
            self.notes.append(f"the preview of step {step} could not be decoded: {error}")
            log.warning("%s", self.notes[-1], exc_info=True)
        finally:
            host.free_vram()
            with suppress(OSError):  # the folder is gone, or the disk full: the run waits no longer than it says
                folder.mark_path(step).touch()
        return None
