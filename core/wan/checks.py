"""Whether a configuration is one of a Wan transformer, and whether inputs fit it."""

from torch import Tensor

from ..errors import ConfigError
from ..facts import PIXELS_PER_LATENT
from .config import MASK_CHANNELS, TRAINABLE, WanConfig

# Far above any model, and low enough that the product of two is the number of elements of a tensor.
MAX_SIZE, MAX_LAYERS, MAX_PATCH = 2**20, 1000, 16


def check_config(config: WanConfig) -> None:
    """Raises ConfigError unless the model can be built from `config`."""
    _check_variant(config)
    _check_sizes(config)
    if config.num_heads < 1 or config.dim % (2 * config.num_heads):
        raise ConfigError(
            f"A width (dim) of {config.dim} cannot be split into {config.num_heads} heads of an even number of "
            "channels; check dim and num_heads of the model."
        )
    if config.num_layers < 1 or config.freq_dim % 2:
        raise ConfigError(
            f"A Wan model needs at least one layer and an even freq_dim, got num_layers {config.num_layers} and "
            f"freq_dim {config.freq_dim}."
        )


def check_inputs(
    config: WanConfig,
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    *,
    conditioning: Tensor | None = None,
    clip_features: Tensor | None = None,
) -> None:
    """Raises ConfigError unless the inputs of `WanTransformer.forward` fit `config` and each other."""
    _check_latents(config, latents)
    _check_timesteps(config, latents, timesteps)
    _check_context(config, latents, context)
    _check_conditioning(config, latents, conditioning)
    _check_clip_features(config, latents, clip_features)


def _check_sizes(config: WanConfig) -> None:
    """Each size by itself: a model is built from what a file states."""
    for name, value in vars(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(number, str | None) or 0 < number <= MAX_SIZE for number in numbers):
            raise ConfigError(f"A Wan model cannot have {name} {value}; check it in the model's configuration.")
    if config.num_layers > MAX_LAYERS or max(config.patch_size) > MAX_PATCH:
        raise ConfigError(
            f"A Wan model cannot have num_layers {config.num_layers} with patch_size {config.patch_size}: {MAX_LAYERS} layers "
            f"and patches of {MAX_PATCH} are the limits."
        )


def _check_variant(config: WanConfig) -> None:
    variant = config.variant
    if variant not in TRAINABLE:
        raise ConfigError(
            f"The Wan variant '{variant}' is not supported yet; only 't2v', 'i2v', 'flf2v' and 'ti2v' are: Wan 2.1 T2V, "
            "I2V and FLF2V, Wan 2.2 T2V-A14B, I2V-A14B and TI2V-5B."
        )
    takes_frames = variant in ("i2v", "flf2v")
    in_dim = 2 * config.out_dim + MASK_CHANNELS if takes_frames else config.out_dim
    if config.in_dim != in_dim:
        raise ConfigError(
            f"A Wan model of the variant '{variant}' with {config.out_dim} output channels has {in_dim} input channels, "
            f"got {config.in_dim}; check variant, in_dim and out_dim of the model."
        )
    if config.image_dim is not None and not takes_frames:
        raise ConfigError(
            f"A Wan model of the variant '{variant}' has no CLIP branch, got image_dim {config.image_dim}."
        )
    if variant == "flf2v" and None in (config.image_dim, config.image_positions):
        raise ConfigError(
            f"A Wan model of the variant 'flf2v' needs image_dim and image_positions, got {config.image_dim} and "
            f"{config.image_positions}."
        )
    if variant != "flf2v" and config.image_positions is not None:
        raise ConfigError(
            f"A Wan model of the variant '{variant}' has no image_positions, got {config.image_positions}; 'flf2v' has."
        )


def _check_latents(config: WanConfig, latents: Tensor) -> None:
    if latents.ndim != 5 or latents.shape[1] != config.out_dim:
        raise ConfigError(
            f"latents must have the shape [batch, {config.out_dim}, frames, height, width], got {list(latents.shape)}; "
            "encode the video with the VAE of this model."
        )
    pixels = PIXELS_PER_LATENT[config.latent_format]
    for name, size, patch in zip(("frames", "height", "width"), latents.shape[2:], config.patch_size, strict=True):
        if size % patch or size == 0:
            raise ConfigError(
                f"The {name} of the latents must be a positive multiple of {patch}, got {size}; "
                f"use a video size that is a multiple of {pixels * config.patch_size[-1]} pixels."
            )


def _check_timesteps(config: WanConfig, latents: Tensor, timesteps: Tensor) -> None:
    batch_size, num_frames = latents.shape[0], latents.shape[2] // config.patch_size[0]
    if timesteps.shape not in ((batch_size,), (batch_size, num_frames)):
        raise ConfigError(
            f"timesteps must have the shape [{batch_size}], one per sample, or [{batch_size}, {num_frames}], one per "
            f"latent frame, got {list(timesteps.shape)}."
        )


def _check_context(config: WanConfig, latents: Tensor, context: Tensor) -> None:
    batch_size, width = latents.shape[0], config.text_dim
    if context.ndim != 3 or context.shape[0] != batch_size or context.shape[2] != width:
        raise ConfigError(
            f"context must have the shape [{batch_size}, tokens, {width}], got {list(context.shape)}; "
            "encode the captions with the text encoder of this model."
        )
    if context.shape[1] > config.text_len:
        raise ConfigError(
            f"context has {context.shape[1]} text tokens, but the model takes at most {config.text_len}; "
            "cut the caption's tokens to that number."
        )


def _check_conditioning(config: WanConfig, latents: Tensor, conditioning: Tensor | None) -> None:
    if config.conditioning_dim == 0:
        if conditioning is None:
            return
        instead = (
            "put the first frame into latents, with the timestep 0" if config.variant == "ti2v" else "leave it out"
        )
        raise ConfigError(
            f"This Wan model ('{config.variant}') takes no conditioning, got one of the shape {list(conditioning.shape)}; "
            f"{instead}, or choose an image-to-video model."
        )
    shape = [latents.shape[0], config.conditioning_dim, *latents.shape[2:]]
    got = None if conditioning is None else list(conditioning.shape)
    if got != shape:
        raise ConfigError(
            f"This Wan model makes videos from images ('{config.variant}') and needs conditioning of the shape {shape}, "
            f"{MASK_CHANNELS} mask channels and the latents of the given frames, got {got or 'none'}; give it, or choose a "
            "text-to-video model."
        )


def _check_clip_features(config: WanConfig, latents: Tensor, clip_features: Tensor | None) -> None:
    got = None if clip_features is None else list(clip_features.shape)
    if config.image_dim is None:
        if got is not None:
            raise ConfigError(
                f"This Wan model ('{config.variant}') has no CLIP branch and takes no clip_features, got some of the shape "
                f"{got}; leave them out, or choose a Wan 2.1 I2V model."
            )
        return
    num_tokens = config.image_positions or (got[1] if got and len(got) == 3 and got[1] else "tokens")
    wanted = [latents.shape[0], num_tokens, config.image_dim]
    if got != wanted:
        frames = "the first and the last frame" if config.variant == "flf2v" else "the first frame"
        shape = ", ".join(map(str, wanted))
        raise ConfigError(
            f"This Wan model ('{config.variant}') needs clip_features of the shape [{shape}], got {got or 'none'}; "
            f"encode {frames} with its CLIP vision encoder."
        )
