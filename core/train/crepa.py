"""CREPA in a run: features of the frames, made once and kept, and the projection that is trained with the LoRA.

B batch, F latent frames, A tokens of a frame, P places of the encoder in a frame, D width, E width of the features.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.peft_hooks import finish_importing_adapters
from ..data.store import Store
from ..encoders.dino import DinoEncoder, check_image_size, folder_identity
from ..encoders.vae import WanVideoEncoder, load_video_encoder
from ..errors import ConfigError, RunError
from ..facts import LATENT_CHANNELS
from ..objective.crepa import Projection, chosen_frames, similarity
from ..objective.forwards import NoisyBatch
from ..parallel.world import World
from ..paths import path_problem, shown
from ..routes import read_routes, routes_among
from ..serial import digest
from ..settings.crepa import CrepaOptions
from ..settings.groups import Groups
from ..settings.job import Job, TrainSample
from ..shortage import free_caches, is_out_of_memory
from ..wan.checkpoint import CheckpointInfo
from ..wan.walk import Look
from .batches import load_tensor
from .events import EventWriter

KIND = "features"  # of the store, and the tensor in its files: [F, P, E] float16


class Crepa:
    """The term of CREPA, and the state of its projection."""

    def __init__(self, projection: Projection, look: Look, options: CrepaOptions) -> None:
        """`look`: that of the model, at the block of the options."""
        self._projection, self._look, self._options = projection, look, options

    def __call__(self, noisy: NoisyBatch) -> Tensor:
        """Minus how much what the newest forward had behind its block agrees with the batch's features, [B] float32."""
        assert noisy.features is not None, "a batch without the features of its frames"
        hidden = self._look.take().unflatten(1, (noisy.latents.shape[2], -1))  # [B, F, A, D]
        return -similarity(self._projection(hidden), noisy.features, self._options)

    def state_dict(self) -> dict[str, Any]:
        """The projection's weights."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._projection.state_dict().items()}

    def check_state(self, state: Any) -> None:
        """ValueError for anything but finite weights of this projection's names and shapes."""
        own = self._projection.state_dict()
        if not isinstance(state, dict) or state.keys() != own.keys():
            raise ValueError("the projection of CREPA has other names")
        for name, tensor in own.items():
            found = state[name]
            if not isinstance(found, Tensor) or found.shape != tensor.shape or found.dtype != tensor.dtype:
                raise ValueError(f"the projection of CREPA has another {name}")
            if not found.isfinite().all():
                raise ValueError(f"the projection of CREPA has a {name} that is not finite")

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """In place."""
        self._projection.load_state_dict(state)


def check_crepa(groups: Groups, info: CheckpointInfo) -> None:
    """ConfigError for a block that the model has not, or that sees a share of the tokens."""
    options, blocks = groups.crepa, info.config.num_layers
    if not options.weight:
        return
    if options.block >= blocks:
        raise ConfigError(
            f"crepa_block is {options.block}, but {info.path.name} has {blocks} blocks: give one from 0 to {blocks - 1}."
        )
    for route in routes_among(read_routes(groups.tread.routes), blocks):
        if route.first <= options.block < route.last:
            raise ConfigError(
                f"crepa_block is {options.block}, but tread_routes leaves tokens out of blocks {route.first} to {route.last}: "
                "choose a block outside, or the last of the route."
            )


def crepa_identity(options: CrepaOptions) -> str:
    """Digest of what decides the features of a frame; "" without CREPA. ConfigError for files that are missing or wrong."""
    if not options.weight:
        return ""
    check_crepa_files(options)
    return digest([folder_identity(Path(options.encoder)), options.image_size], 32)


def check_crepa_files(options: CrepaOptions) -> None:
    """ConfigError or ModelFileError, from their names and the model's configuration, for what can't be looked with."""
    for name, path in (("crepa_encoder", options.encoder), ("crepa_vae", options.vae)):
        if not path:
            raise ConfigError(
                f"crepa_weight is {options.weight:g}, but {name} is empty: give its path, or set crepa_weight to 0."
            )
        problem = path_problem(path, folders=True)
        if problem:
            raise ConfigError(f"{name} '{shown(path)}' {problem}: check the path, or set crepa_weight to 0.")
    check_image_size(Path(options.encoder), options.image_size)


def feature_path(job: Job) -> Callable[[TrainSample], str] | None:
    """Where the features of each sample lie; None without CREPA."""
    if not job.crepa.weight:
        return None
    return lambda sample: str(_store_of(sample).path(KIND, _key(job, sample)))


def make_features(
    job: Job, device: torch.device, events: EventWriter, should_stop: Callable[[], bool], world: World
) -> None:
    """Bring the features of all samples that are trained to the disk, where they are not yet.

    The cached latents are decoded, as SimpleTuner does in every step, and of the frames those are looked at that stand for
    latent frames. All ranks call it; the first does it. What is made when the run shall stop is kept. ConfigError for files
    that are not those that the run was made with.
    """
    if job.crepa.weight and world.is_first:
        _make_absent(job, device, events, should_stop)
    world.wait_for_all()


def _make_absent(job: Job, device: torch.device, events: EventWriter, should_stop: Callable[[], bool]) -> None:
    absent = [sample for sample in job.training_samples if _store_of(sample).look(KIND, _key(job, sample)) is None]
    if not absent:
        return
    if crepa_identity(job.crepa) != job.crepa_identity:
        raise ConfigError(
            f"{job.crepa.encoder} is not the model that this run was started with (its content changed): restore it, or start "
            "a new run."
        )
    finish_importing_adapters()  # which goes on beside, with other things in the place of transformers
    vae = load_video_encoder(Path(job.crepa.vae), device)
    dino = DinoEncoder(Path(job.crepa.encoder), device, side=job.crepa.image_size)
    for number, sample in enumerate(absent, start=1):
        if should_stop():  # which the run looks at before its first step
            break
        events.write("status", message=f"making DINOv2's features of the frames: {number} of {len(absent)}")
        features = _features_of(sample, vae, dino)
        _store_of(sample).save(KIND, _key(job, sample), {KIND: features.half()}, {"sample": sample.name})
    del vae, dino
    free_caches()


def _features_of(sample: TrainSample, vae: WanVideoEncoder, dino: DinoEncoder) -> Tensor:
    """[F, P, E] float32."""
    if LATENT_CHANNELS[vae.latent_format] != sample.shape[0]:
        raise ConfigError(
            f"crepa_vae is a {vae.latent_format.replace('wan', 'Wan ')} VAE, but the latents of {sample.name} have "
            f"{sample.shape[0]} channels: give the VAE that they were cached with."
        )
    try:
        frames = vae.decode(load_tensor(sample.latents_path, "latents", sample.name, sample.shape))
        return dino.encode(frames[chosen_frames(len(frames), sample.shape[1])])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"Memory ran out while DINOv2 looked at {sample.name}: close other programs that use the GPU, choose a smaller "
            "crepa_encoder, or set crepa_weight to 0; what was made so far is kept."
        ) from error


def _key(job: Job, sample: TrainSample) -> str:
    return digest(["crepa", 1, sample.latents_key, job.crepa_identity], 32)


def _store_of(sample: TrainSample) -> Store:
    """That of its latents, which lie in root/latents/ke; of latents elsewhere, their folder."""
    folder = Path(sample.latents_path).parent
    return Store(folder.parents[1] if folder.parent.name == "latents" else folder)
