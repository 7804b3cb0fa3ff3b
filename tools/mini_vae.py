"""A Wan 2.1 VAE of small width, made and not trained: it keeps the colours of every 4x8x8 block."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from .weights import Tensors, Weights

MULTIPLES = (1, 2, 4, 4)  # VAE widths per stage, in units of the base width
Z_DIM = 16

# Per-channel mean and std of Wan 2.1 latents (Wan2.1, wan/modules/vae.py): every user of the file normalises by these.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def wan_vae(dim: int = 8, seed: int = 1) -> Tensors:
    """State dict of a Wan 2.1 VAE of base width `dim` (8 or more keeps colours, 1 to 7 is random), float32."""
    draw = Weights(seed)
    _encoder(draw, dim)
    draw.conv("conv1", 2 * Z_DIM, 2 * Z_DIM, (1, 1, 1), gain=1.0)
    draw.conv("conv2", Z_DIM, Z_DIM, (1, 1, 1), gain=1.0)
    _decoder(draw, dim)
    if dim >= 8:
        _keep_colours(draw, dim)
    return draw.tensors


def _residual(draw: Weights, name: str, channels_in: int, channels_out: int) -> None:
    draw.ones(f"{name}.residual.0.gamma", channels_in, 1, 1, 1)
    draw.conv(f"{name}.residual.2", channels_out, channels_in, (3, 3, 3), gain=1.0)
    draw.ones(f"{name}.residual.3.gamma", channels_out, 1, 1, 1)
    draw.conv(f"{name}.residual.6", channels_out, channels_out, (3, 3, 3), gain=0.5)
    if channels_in != channels_out:
        draw.conv(f"{name}.shortcut", channels_out, channels_in, (1, 1, 1), gain=1.0)


def _middle(draw: Weights, name: str, channels: int) -> None:
    _residual(draw, f"{name}.0", channels, channels)
    draw.ones(f"{name}.1.norm.gamma", channels, 1, 1)
    draw.conv(f"{name}.1.to_qkv", 3 * channels, channels, (1, 1), gain=1.0)
    draw.conv(f"{name}.1.proj", channels, channels, (1, 1), gain=0.5)
    _residual(draw, f"{name}.2", channels, channels)


def _encoder(draw: Weights, dim: int) -> None:
    widths = [dim * multiple for multiple in (1, *MULTIPLES)]
    draw.conv("encoder.conv1", widths[0], 3, (3, 3, 3), gain=1.0)
    layer = 0
    for stage, (channels, width) in enumerate(pairwise(widths)):
        for channels_in in (channels, width):
            _residual(draw, f"encoder.downsamples.{layer}", channels_in, width)
            layer += 1
        if stage < 3:
            draw.conv(f"encoder.downsamples.{layer}.resample.1", width, width, (3, 3), gain=1.0)
            if stage > 0:
                draw.conv(f"encoder.downsamples.{layer}.time_conv", width, width, (3, 1, 1), gain=1.0)
            layer += 1
    _middle(draw, "encoder.middle", widths[-1])
    draw.ones("encoder.head.0.gamma", widths[-1], 1, 1, 1)
    draw.conv("encoder.head.2", 2 * Z_DIM, widths[-1], (3, 3, 3), gain=1.0)


def _decoder(draw: Weights, dim: int) -> None:
    widths = [dim * multiple for multiple in (MULTIPLES[-1], *reversed(MULTIPLES))]
    draw.conv("decoder.conv1", widths[0], Z_DIM, (3, 3, 3), gain=1.0)
    _middle(draw, "decoder.middle", widths[0])
    layer = 0
    for stage, (channels, width) in enumerate(pairwise(widths)):
        for channels_in in (channels if stage == 0 else channels // 2, width, width):
            _residual(draw, f"decoder.upsamples.{layer}", channels_in, width)
            layer += 1
        if stage < 3:
            draw.conv(f"decoder.upsamples.{layer}.resample.1", width // 2, width, (3, 3), gain=1.0)
            if stage < 2:
                draw.conv(f"decoder.upsamples.{layer}.time_conv", 2 * width, width, (3, 1, 1), gain=1.0)
            layer += 1
    draw.ones("decoder.head.0.gamma", widths[-1], 1, 1, 1)
    draw.conv("decoder.head.2", 3, widths[-1], (3, 3, 3), gain=1.0)


_ANCHOR = 12.0  # value of the constant channel; the norm before the last convolution divides by about this
_POINT, _MEAN, _SMOOTH = (0.0, 1.0, 0.0), (0.5, 0.5, 0.0), (0.25, 0.5, 0.25)  # spatial kernels, one axis


def _keep_colours(draw: Weights, dim: int) -> None:
    """Turn the random VAE into one that averages colours over 4x8x8 blocks and paints them back.

    Residual branches and attention add nothing. Channels 0 to 2 carry red, green, blue; channel 3 a constant; channels
    4 to 6 minus the colours, because silu(x) - silu(-x) = x makes the pair of norm and SiLU at the end linear. Each of
    the 16 latent channels is its own mixture of the three colours, so the decoder takes the mean over 16 readings.
    """
    tensors = draw.tensors
    for name in [n for n in tensors if n.endswith(("residual.6.weight", ".proj.weight"))]:
        tensors[name].zero_()
    same = {(channel, channel): 1.0 for channel in range(7)}
    signed = {(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0, (3, 3): 1.0, (4, 0): -1.0, (5, 1): -1.0, (6, 2): -1.0}
    twice = {**same, **{(channel + 4 * dim, channel): 1.0 for channel in range(7)}}
    for name in [n.removesuffix(".weight") for n in tensors if n.endswith("shortcut.weight")]:
        _write(tensors, name, same, _POINT)
    _write(tensors, "encoder.conv1", {(c, c): 1.0 for c in range(3)}, _POINT)
    tensors["encoder.conv1.bias"][3] = _ANCHOR
    for layer, channels in ((2, same), (5, same), (8, signed)):
        _write(tensors, f"encoder.downsamples.{layer}.resample.1", channels, _MEAN)
        if layer > 2:
            _write(tensors, f"encoder.downsamples.{layer}.time_conv", same, _POINT, times=(0.0, 0.5, 0.5))
    mixtures = torch.nn.functional.normalize(draw.normal(Z_DIM, 3, std=1.0), dim=1)
    _write_ends(tensors, dim, mixtures)
    for layer, channels in ((3, same), (7, same), (11, signed)):
        _write(tensors, f"decoder.upsamples.{layer}.resample.1", channels, _SMOOTH)
        if layer < 11:
            _write(tensors, f"decoder.upsamples.{layer}.time_conv", twice, _POINT)


def _write_ends(tensors: Tensors, dim: int, mixtures: Tensor) -> None:
    """The layers on both sides of the latents and the last one. mixtures [16, 3]: colours to unit-variance latents."""
    mean, std = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)
    spread = 1.2  # gives latents of drawn clips a std of about 1
    encode = spread * mixtures * std[:, None]
    gain = _ANCHOR / math.sqrt(4 * dim)  # undoes the norm over the encoder's last 4 * dim channels
    _write(tensors, "encoder.head.2", _signed_columns(encode * gain), _POINT)
    tensors["encoder.head.2.bias"][:Z_DIM] = mean
    _write(tensors, "conv1", {(c, c): 1.0 for c in range(2 * Z_DIM)}, _POINT)
    _write(tensors, "conv2", {(c, c): 1.0 for c in range(Z_DIM)}, _POINT)
    decode = torch.linalg.pinv(spread * mixtures) / std  # [3, 16]
    _write(tensors, "decoder.conv1", {(r, c): float(decode[r, c]) for r in range(3) for c in range(Z_DIM)}, _POINT)
    tensors["decoder.conv1.bias"][:3] = -(decode @ mean)
    tensors["decoder.conv1.bias"][3] = _ANCHOR
    _write(tensors, "decoder.head.2", _signed_columns(torch.eye(3) * _ANCHOR / math.sqrt(dim)), _POINT)


def _signed_columns(weights: Tensor) -> dict[tuple[int, int], float]:
    """Taps that read the colours [rows, 3] from channels 0 to 2 and, with the other sign, from channels 4 to 6."""
    taps = {}
    for row in range(weights.shape[0]):
        for colour in range(3):
            taps[row, colour] = float(weights[row, colour])
            taps[row, colour + 4] = -float(weights[row, colour])
    return taps


def _write(
    tensors: Tensors,
    name: str,
    taps: dict[tuple[int, int], float],
    kernel: tuple[float, float, float],
    times: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> None:
    """Clear a convolution and give channel pairs (out, in) the separable kernel; pairs that do not fit are left out."""
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    weight.zero_()
    bias.zero_()
    rows, columns, *sizes = weight.shape
    axes = [torch.ones(1) if size == 1 else torch.tensor(kernel) for size in sizes[-2:]]
    pattern = axes[0][:, None] * axes[1]
    if len(sizes) == 3:
        pattern = (torch.ones(1) if sizes[0] == 1 else torch.tensor(times))[:, None, None] * pattern
    for (row, column), value in taps.items():
        if row < rows and column < columns:
            weight[row, column] = value * pattern
