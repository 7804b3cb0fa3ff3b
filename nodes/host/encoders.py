"""The host's VAE, CLIP vision model and umT5 as the encoders that `core.data.types` asks for."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management as mm
import torch

from ...core.data.latents import normalise_latents, signed_pixels, unit_range
from ...core.encoders.batches import encode_in_batches
from ...core.encoders.identity import text_identity, video_identity, vision_identity
from ...core.errors import ConfigError
from ...core.facts import TEXT_TOKENS, LatentFormat, latent_format
from ...core.shortage import try_twice
from .control import free_vram, raise_if_interrupted

_PAD, _END = 0, 1  # umT5's ids


def nothing(*_: object) -> None:
    """What is done before encoding where nobody asks for more."""


class _Once:
    """Calls a function the first time alone."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *given: object) -> None:
        function, self._function = self._function, nothing
        function(*given)


class HostVideoEncoder:
    """The host's Wan VAE as `core.data.types.VideoEncoder`."""

    def __init__(self, vae: Any, before: Callable[[], object] = nothing):
        """`before` is called once, before anything is encoded, and may raise."""
        model = vae.first_stage_model
        if not type(model).__module__.startswith("comfy.ldm.wan."):
            raise ConfigError(
                f"the VAE is not a Wan VAE (it is {type(model).__name__}): load wan_2.1_vae.safetensors for Wan 2.1 and "
                "for Wan 2.2 A14B."
            )
        self._vae, self._before = vae, _Once(before)
        self.latent_format: LatentFormat = latent_format(vae.latent_channels)
        self.identity = video_identity(model.state_dict(), self.latent_format, vae.vae_dtype)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3], uint8 or 0..1, to normalised latents [C, f, h, w] float32; one clip at a time, as the host needs."""
        raise_if_interrupted()
        self._before()
        return try_twice(lambda: self._encode(frames), free_vram)

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        """As `VAE.encode` in comfy/sd.py, but without its silent change to tiles where memory runs out."""
        vae = self._vae
        with mm.cuda_device_context(vae.device):
            needed = vae.memory_used_encode((1, 3, *frames.shape[:3]), vae.vae_dtype)
            mm.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
            pixels = vae.vae_encode_crop_pixels(signed_pixels(frames, vae.device, vae.vae_dtype))  # [F, H, W, 3]
            latents = vae.first_stage_model.encode(pixels.permute(3, 0, 1, 2)[None])  # [1, C, f, h, w], posterior mean
            return normalise_latents(latents[0].float().cpu(), self.latent_format)


class HostVisionEncoder:
    """The host's CLIP vision model as `core.data.types.VisionEncoder`."""

    def __init__(self, clip_vision: Any):
        self._clip_vision = clip_vision
        self.identity = vision_identity(clip_vision.model.state_dict(), clip_vision.dtype)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """[H, W, 3] uint8 to [257, 1280] float32: the whole image, squeezed into a square, as Wan was trained."""
        raise_if_interrupted()
        output = self._clip_vision.encode_image(unit_range(image)[None], crop=False)
        return output.penultimate_hidden_states[0].float().cpu()


class HostTextEncoder:
    """The host's umT5 as `core.data.types.TextEncoder`: no prompt weights, at most 512 tokens."""

    def __init__(self, clip: Any, before: Callable[[Sequence[str]], object] = nothing):
        """`before`: as of `HostVideoEncoder`, with the first captions that are encoded."""
        prefix = "umt5xxl.transformer."
        whole = clip.cond_stage_model.state_dict()
        state = {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}
        tokens = clip.tokenize("a", disable_weights=True)
        if "umt5xxl" not in tokens or "shared.weight" not in state:
            raise ConfigError(
                "the CLIP is not a umT5 text encoder: load umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled."
                "safetensors with the type 'wan', or models_t5_umt5-xxl-enc-bf16.pth with the node Load umT5 (any size)."
            )
        self._clip, self._before = clip, _Once(before)
        self.dim = state["shared.weight"].shape[1]
        # A patched encoder (a LoRA on it) has the same weights; the host gives each set of patches an id of its own.
        changes = str(clip.patcher.patches_uuid) if clip.patcher.patches else ""
        if clip.layer_idx is not None:  # the node CLIP Set Last Layer
            changes += f" layer {clip.layer_idx}"
        tokenizer = clip.tokenizer.state_dict()["spiece_model"].numpy().tobytes()
        self.identity = text_identity(state, tokenizer, torch.float32, changes)  # the host computes it in fp32

    def encode(self, caption: str) -> tuple[torch.Tensor, bool]:
        """[num_tokens, dim] float32, and whether the caption was cut."""
        return self.encode_batch([caption])[0]

    def encode_batch(self, captions: Sequence[str]) -> list[tuple[torch.Tensor, bool]]:
        """As `encode` for each: the host takes several at once as chunks of a long prompt, each with its own attention."""
        self._before(captions)
        rows = [self._tokenize(caption) for caption in captions]
        contexts = encode_in_batches([pairs for pairs, _ in rows], self._encode, free_vram)
        return [(context, was_cut) for context, (_, was_cut) in zip(contexts, rows, strict=True)]

    def _tokenize(self, caption: str) -> tuple[list[Any], bool]:
        """(token, weight) pairs without padding, and whether the caption was cut."""
        tokens = self._clip.tokenize(caption.replace("embedding:", "embedding :"), disable_weights=True)
        pairs = [pair for chunk in tokens["umt5xxl"] for pair in chunk]
        real = [pair for pair in pairs if not (isinstance(pair[0], int) and pair[0] == _PAD)]
        if len(real) <= TEXT_TOKENS:
            return real, False
        return [*real[: TEXT_TOKENS - 1], (_END, 1.0)], True

    def _encode(self, rows: Sequence[Sequence[Any]]) -> list[torch.Tensor]:
        raise_if_interrupted()
        longest = max(map(len, rows))
        chunks = [[*pairs, *[(_PAD, 1.0)] * (longest - len(pairs))] for pairs in rows]
        context = self._clip.encode_from_tokens_scheduled({"umt5xxl": chunks})[0][0]  # [1, chunks x longest, dim]
        states = context.float().cpu().unflatten(1, (len(rows), longest))[0]
        return [own[: len(pairs)].clone() for own, pairs in zip(states, rows, strict=True)]
