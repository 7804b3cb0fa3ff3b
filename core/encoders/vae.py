"""The Wan VAE by diffusers. Shapes: B clips, F frames, H W pixels or latents, C latent channels."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.latents import normalise_latents, signed_pixels
from ..data.tiles import TILE
from ..errors import ConfigError, DatasetError, ModelFileError
from ..facts import PIXELS_PER_LATENT, LatentFormat
from ..shortage import free_caches, is_out_of_memory, try_twice
from ..wan.identify import identify
from .identity import video_identity
from .light_import import wan_vae_class
from .weights import EncoderWeights, check_weights, headless_packages, open_weights

log = logging.getLogger(__name__)

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_FORMATS: dict[str, LatentFormat] = {"wan2.1_vae": "wan2.1", "wan2.2_vae": "wan2.2"}
_ARCHITECTURES: dict[LatentFormat, dict[str, Any]] = {
    "wan2.1": {"z_dim": 16},
    "wan2.2": {
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,  # patches of 2x2 pixels
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
}

# GPUs of the generation before bf16 that give wrong or slow results in fp16.
_SLOW_HALF = ("1660", "1650", "1630", "T500", "T550", "T600", "MX550", "MX450", "CMP 30HX", "T2000", "T1000", "T1200")

# diffusers (autoencoder_kl_wan.py) -> official (wan/modules/vae2_1.py, vae2_2.py)
_ENDS = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
}
_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_NAME = re.compile(r"(?:(encoder|decoder)\.)?(.+)\.(weight|bias|gamma)")
_END = re.compile("(" + "|".join(re.escape(end) for end in _ENDS) + r")(?:\.(.+))?")
_DOWN_FLAT = re.compile(r"down_blocks\.(\d+)\.(.+)")
_DOWN = re.compile(r"down_blocks\.(\d+)\.(?:resnets\.(\d)|(downsampler))\.(.+)")
_UP = re.compile(r"up_blocks\.(\d+)\.(?:resnets\.(\d)|(upsamplers\.0|upsampler))\.(.+)")


class WanVideoEncoder:
    """A Wan VAE as `core.data.types.VideoEncoder`, with a decoder."""

    def __init__(self, model: Any, latent_format: LatentFormat, identity: str) -> None:
        self.latent_format: LatentFormat = latent_format
        self.identity = identity
        self._model = model

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._model.dtype

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """[F, H, W, 3], uint8 or 0..1, to the posterior mean, normalised, [C, (F-1)//4+1, h, w] float32 on the CPU.

        Of F frames the first 4n+1 are used. Raises DatasetError for sides that the VAE cannot halve to the end. If memory
        runs out twice, that error is raised; but pictures no larger than a tile, which cannot be made smaller, then go
        through the CPU, as does everything after them.
        """
        stride = PIXELS_PER_LATENT[self.latent_format]
        height, width = frames.shape[1:3]
        if height % stride or width % stride:
            raise DatasetError(
                f"frames of {width}x{height} cannot be encoded: the {self.latent_format} VAE needs sides that are "
                f"multiples of {stride}; crop or scale them."
            )
        try:
            return try_twice(lambda: self._encode(frames), self._free)
        except Exception as error:
            if not is_out_of_memory(error) or max(height, width) > TILE or self._model.device.type == "cpu":
                raise
        log.warning("The GPU has no memory left for tiles of %d pixels: the VAE goes on, slowly, on the CPU.", TILE)
        self._model.to("cpu")
        self._free()
        return self._encode(frames)

    def _encode(self, frames: Tensor) -> Tensor:
        pixels = signed_pixels(frames, self._model.device, self.dtype)
        mean = self._model.encode(
            pixels.permute(3, 0, 1, 2)[None]
        ).latent_dist.mean  # of [1, 3, F, H, W]: [1, C, f, h, w]
        return normalise_latents(mean[0].float().cpu(), self.latent_format)

    def _free(self) -> None:
        self._model.clear_cache()  # frames that a broken-off attempt left for the next chunk
        free_caches()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [C, f, h, w] to frames [4f-3, H, W, 3] uint8 on the CPU; [B, ...] to [B, ...]."""
        if latents.ndim == 5:
            return torch.stack([self.decode(one) for one in latents])
        mean = denormalise_latents(latents.float().cpu(), self.latent_format)
        video = self._model.decode(mean[None].to(self._model.device, self.dtype)).sample[0]  # [3, F, H, W], -1 to 1
        return ((video.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu()


def load_video_encoder(path: Path, device: torch.device | str, dtype: torch.dtype | None = None) -> WanVideoEncoder:
    """The VAE at `path`: ComfyUI's or the official file (safetensors or .pth), or diffusers' file or folder.

    Computes in `dtype`, by default in the one that ComfyUI takes on this device. Raises ModelFileError if the file is
    anything but a whole Wan VAE, ConfigError if a package is missing.
    """
    path, device = Path(path), torch.device(device)
    dtype = default_dtype(device) if dtype is None else dtype
    if dtype not in COMPUTE_DTYPES:
        raise ConfigError(f"The VAE cannot compute in {dtype}; use float32, bfloat16 or float16.")
    weights = open_weights(path / "vae" if (path / "vae").is_dir() else path)
    latent_format = _latent_format(weights)
    stored = _official_names(weights, latent_format)
    model = _build_on_meta(weights, stored, latent_format)
    diffusers_names = {official_name(name, latent_format): name for name in model.state_dict()}
    shapes = {name: tuple(model.state_dict()[inner].shape) for name, inner in diffusers_names.items()}
    check_weights(weights, stored, shapes)
    official = {stored[name]: name for name in shapes}
    # Under inference mode the weights could not be moved or used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        state = {official[name]: tensor.to(device, dtype) for name, tensor in weights.read(official)}
        identity = video_identity(state, latent_format, dtype)
        model.load_state_dict({diffusers_names[name]: state[name] for name in state}, strict=True, assign=True)
    return WanVideoEncoder(model.requires_grad_(False).eval(), latent_format, identity)


def default_dtype(device: torch.device) -> torch.dtype:
    """What ComfyUI computes a Wan VAE in on this device: bf16 where it is native, else fp16 where that is fast."""
    if device.type == "mps":
        return torch.bfloat16
    if device.type != "cuda":
        return torch.float32
    generation = torch.cuda.get_device_capability(device)[0]
    if generation >= 8:
        return torch.bfloat16
    has_slow_half = any(name in torch.cuda.get_device_name(device) for name in _SLOW_HALF)
    return torch.float16 if generation == 7 and not has_slow_half else torch.float32


def denormalise_latents(latents: Tensor, latent_format: LatentFormat) -> Tensor:
    """The inverse of `normalise_latents`, in float64 on the way: [C, f, h, w] to the posterior mean."""
    zeros = torch.zeros(latents.shape[0], 1, 1, 1, dtype=torch.float64)
    offset = normalise_latents(zeros, latent_format)
    gain = normalise_latents(zeros + 1.0, latent_format) - offset
    return ((latents.double() - offset) / gain).to(latents.dtype)


def official_name(name: str, latent_format: LatentFormat) -> str:
    """The official name of a weight of diffusers' VAE."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    side, module, kind = match.groups()
    module = _official_module(module, latent_format)
    return ".".join(part for part in (side, module, kind) if part)


def _official_module(module: str, latent_format: LatentFormat) -> str:
    """Names of modules below `encoder.` or `decoder.`, or beside them."""
    if end := _END.fullmatch(module):
        return _ENDS[end[1]] + (f".{_RESIDUAL.get(end[2], end[2])}" if end[2] else "")
    if latent_format == "wan2.1" and (down := _DOWN_FLAT.fullmatch(module)):
        return f"downsamples.{down[1]}.{_RESIDUAL.get(down[2], down[2])}"
    if down := _DOWN.fullmatch(module):
        return f"downsamples.{down[1]}.downsamples.{down[2] or 2}.{_RESIDUAL.get(down[4], down[4])}"
    if up := _UP.fullmatch(module):
        block, layer = int(up[1]), int(up[2] or 3)
        place = f"{4 * block + layer}" if latent_format == "wan2.1" else f"{block}.upsamples.{layer}"
        return f"upsamples.{place}.{_RESIDUAL.get(up[4], up[4])}"
    return module


def _latent_format(weights: EncoderWeights) -> LatentFormat:
    kind = identify(weights.shapes)
    if kind.name not in _FORMATS:
        raise ModelFileError(
            f"'{weights.path}' is {kind.label}; a Wan VAE is needed: wan_2.1_vae.safetensors for Wan 2.1 and Wan 2.2 "
            "A14B, wan2.2_vae.safetensors for Wan 2.2 5B."
        )
    return _FORMATS[kind.name]


def _official_names(weights: EncoderWeights, latent_format: LatentFormat) -> dict[str, str]:
    """Official names to those in the file."""
    if "encoder.conv_in.weight" not in weights.shapes:
        return {name: name for name in weights.shapes}
    return {official_name(name, latent_format): name for name in weights.shapes}


def _build_on_meta(weights: EncoderWeights, stored: dict[str, str], latent_format: LatentFormat) -> Any:
    """diffusers' VAE in the sizes of the file, without memory for its weights."""
    with headless_packages():
        autoencoder = wan_vae_class()
    sizes = {}
    for key, name in (("base_dim", "encoder.conv1.weight"), ("decoder_base_dim", "decoder.head.0.gamma")):
        if name not in stored:
            raise ModelFileError(
                f"The model file '{weights.path}' is incomplete: it has no '{name}'; download it again."
            )
        sizes[key] = weights.shapes[stored[name]][0]
    with torch.device("meta"):
        return autoencoder(**sizes, temperal_downsample=[False, True, True], **_ARCHITECTURES[latent_format])
