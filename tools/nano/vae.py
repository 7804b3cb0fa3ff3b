"""The Wan 2.1 VAE for training it: whole clips at once, the same numbers as the official chunk by chunk.

The official code (Wan2.1, wan/modules/vae.py) walks through a clip four frames at a time and keeps the ends of each
chunk. What comes out is a causal convolution over the whole clip, in which the first frame goes its own way: it is
never mixed into a shorter or longer time axis. Written so, a clip is one pass. Names equal the checkpoint's keys.

Shapes: B batch, C channels, F frames, H W size.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..mini_vae import LATENT_MEAN, LATENT_STD, MULTIPLES, Z_DIM


class CausalConv3d(nn.Conv3d):
    """Sees its own and earlier frames only; zeros stand before the first."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.before = kernel[0] - 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 0, 0, 0, self.before, 0)))


class RMSNorm(nn.Module):
    """Over the channels."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


class Residual(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(channels_in, 3), nn.SiLU(), CausalConv3d(channels_in, channels_out, (3, 3, 3)),
            RMSNorm(channels_out, 3), nn.SiLU(), nn.Identity(), CausalConv3d(channels_out, channels_out, (3, 3, 3)),
        )  # fmt: skip
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else CausalConv3d(channels_in, channels_out, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class FrameAttention(nn.Module):
    """Attention among the pixels of each frame, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)  # [B F, C, H, W]
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        out = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(frames.shape)
        return x + self.proj(out).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Resample(nn.Module):
    """Half or double the size of each frame, and, where `time`, of the time axis behind the first frame."""

    def __init__(self, channels: int, *, up: bool, time: bool) -> None:
        super().__init__()
        self.up = up
        if up:
            enlarge = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
            self.resample = nn.Sequential(enlarge, nn.Conv2d(channels, channels // 2, 3, padding=1))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        if not time:
            self.time_conv = None
        elif up:
            self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1))
        else:
            self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.up and self.time_conv is not None and x.shape[2] > 1:
            doubled = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # [B, 2, C, F-1, H, W]
            x = torch.cat([x[:, :, :1], doubled.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
        batch, _, frames = x.shape[:3]
        x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
        if not self.up and self.time_conv is not None and frames > 1:
            x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
        return x


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(Residual(channels, channels), FrameAttention(channels), Residual(channels, channels))


class Encoder(nn.Module):
    """[B, 3, F, H, W] to [B, 2 Z, (F-1)/4 + 1, H/8, W/8]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim * multiple for multiple in (1, *MULTIPLES)]
        layers: list[nn.Module] = []
        for stage in range(4):
            layers += [Residual(widths[stage], widths[stage + 1]), Residual(widths[stage + 1], widths[stage + 1])]
            if stage < 3:
                layers.append(Resample(widths[stage + 1], up=False, time=stage > 0))
        self.conv1 = CausalConv3d(3, widths[0], (3, 3, 3))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = nn.Sequential(RMSNorm(widths[-1], 3), nn.SiLU(), CausalConv3d(widths[-1], 2 * Z_DIM, (3, 3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    """[B, Z, F, H, W] to [B, 3, 4 (F-1) + 1, 8 H, 8 W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim * multiple for multiple in (MULTIPLES[-1], *reversed(MULTIPLES))]
        layers: list[nn.Module] = []
        for stage in range(4):
            width = widths[stage + 1]
            first = widths[stage] if stage == 0 else widths[stage] // 2
            layers += [Residual(first, width), Residual(width, width), Residual(width, width)]
            if stage < 3:
                layers.append(Resample(width, up=True, time=stage < 2))
        self.conv1 = CausalConv3d(Z_DIM, widths[0], (3, 3, 3))
        self.middle = _middle(widths[0])
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(RMSNorm(widths[-1], 3), nn.SiLU(), CausalConv3d(widths[-1], 3, (3, 3, 3)))

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(z))))


class WanVAE(nn.Module):
    """The whole VAE; `encode` and `decode` speak normalised latents, as the transformer sees them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = Encoder(dim)
        self.conv1 = CausalConv3d(2 * Z_DIM, 2 * Z_DIM, (1, 1, 1))
        self.conv2 = CausalConv3d(Z_DIM, Z_DIM, (1, 1, 1))
        self.decoder = Decoder(dim)

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the raw latents, both [B, Z, f, h, w]; video [B, 3, F, H, W] in -1..1."""
        mean, log_var = self.conv1(self.encoder(video)).chunk(2, dim=1)
        return mean, log_var

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Video [B, 3, F, H, W], about -1..1, of raw latents."""
        return self.decoder(self.conv2(latents))

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Normalised posterior mean."""
        mean, std = _format(video)
        return (self.posterior(video)[0] - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Video in -1..1 of normalised latents."""
        mean, std = _format(latents)
        return self.reconstruct(latents * std + mean).clamp(-1, 1)

    @torch.no_grad()
    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Given mean and std [Z] of the raw latents, rescale so that they become those of the true Wan 2.1 VAE.

        Encoder and decoder change together: reconstructions stay the same.
        """
        wan_mean, wan_std = (x.flatten() for x in _format(mean))
        scale = wan_std / std
        rows = self.conv1.weight[:Z_DIM]
        rows.mul_(scale.view(-1, 1, 1, 1, 1))
        self.conv1.bias[:Z_DIM] = (self.conv1.bias[:Z_DIM] - mean) * scale + wan_mean
        self.conv1.bias[Z_DIM:] += 2 * scale.log()
        weight = self.conv2.weight[:, :, 0, 0, 0]
        self.conv2.bias += weight @ (mean - wan_mean / scale)
        self.conv2.weight.div_(scale.view(1, -1, 1, 1, 1))


def _format(like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of the latent format Wan 2.1, [1, Z, 1, 1, 1]."""
    return (like.new_tensor(LATENT_MEAN).view(1, -1, 1, 1, 1), like.new_tensor(LATENT_STD).view(1, -1, 1, 1, 1))


def to_video(frames: Tensor) -> Tensor:
    """[B, F, H, W, 3] uint8 to [B, 3, F, H, W] in -1..1."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """The inverse of `to_video`, rounded and clamped."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def load_vae(path: Path) -> WanVAE:
    """The VAE of a file, float32, for use."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    vae = WanVAE(tensors["encoder.conv1.weight"].shape[0])
    vae.load_state_dict(tensors)
    return vae.eval().requires_grad_(False)
