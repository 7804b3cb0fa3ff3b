"""Trains the nano VAE: `python -m tools.nano vae FILE --log CSV` (one GPU, some minutes).

It starts from the made VAE of `tools/mini_vae.py`, which keeps the colours of blocks: from random weights it takes
thousands of steps to find colour. It sees every shape, texture and motion, the new ones included, under permuted
colours: what a VAE can show is not what a LoRA has to teach.
"""

import argparse
import csv
import math
import random
import time
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from ..mini_vae import wan_vae
from . import world
from .drawing import draw_all, everything
from .evaluate import shares, test_scenes
from .family import VAE_DIM
from .graphed import Averaged, Clock, Graphed, adamw, device
from .judge import judge
from .vae import WanVAE, to_frames, to_video

KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
COLOURED_WEIGHT = 10.0  # of a pixel that belongs to an object: they are few


def training_frames(seed: int, clips: int) -> Tensor:
    """Clips [N, F, H, W, 3] uint8 of everything that can be drawn."""
    rng = random.Random(seed)
    return torch.from_numpy(draw_all([everything(rng, scene) for scene in islice(world.scenes(seed), clips)]))


def augmented(frames: Tensor) -> Tensor:
    """Frames [B, F, H, W, 3] to video [B, 3, F, H, W], at random mirrored and with its colours permuted and dimmed.

    Whole clips: trained on parts of them, the VAE gets worse from the end of a part on.
    """
    size, place = len(frames), frames.device
    video = to_video(frames)
    orders = torch.rand(size, 3, device=place).argsort(1)
    video = video.gather(1, orders.view(-1, 3, 1, 1, 1).expand_as(video))
    for axis in (3, 4):
        video = torch.where(torch.rand(size, 1, 1, 1, 1, device=place) < 0.5, video.flip(axis), video)
    return (video + 1) * (0.85 + 0.15 * torch.rand(size, 1, 1, 1, 1, device=place)) - 1


def vae_loss(vae: WanVAE, video: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum, and the plain L1 error: L1 and L2 of pixels, L1 of their differences, and the KL divergence."""
    mean, log_var = (x.float() for x in vae.posterior(video))
    log_var = log_var.clamp(-20, 10)
    latents = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
    error = vae.reconstruct(latents).float() - video
    coloured = video.amax(1, keepdim=True) - video.amin(1, keepdim=True) > 0.3
    weight = torch.where(coloured, COLOURED_WEIGHT, 1.0)
    pixels = (weight * (error.abs() + 2 * error.square())).mean()
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
    return pixels + EDGE_WEIGHT * edges + KL_WEIGHT * divergence, error.abs().mean()


def train(
    vae: WanVAE, frames: Tensor, *, steps: int, batch_size: int, learning_rate: float, log: Path, stop: float
) -> None:
    """AdamW, warm-up and cosine; the averaged weights stay in the model. One line of `log` every 100 steps.

    It ends after `steps`, or after `stop` seconds where that is sooner; the learning rate has then fallen to zero.
    """
    parameters = list(vae.parameters())
    optimizer, rate = adamw(parameters, weight_decay=0.0)
    average = Averaged(parameters, 0.999)
    compute_loss = torch.compile(vae_loss) if frames.is_cuda else vae_loss

    def step_once() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        chosen = torch.randint(len(frames), (batch_size,), device=frames.device)
        video = augmented(frames[chosen]).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):  # few CPUs compute in it
            loss, pixels = compute_loss(vae, video)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        return torch.stack([loss.detach(), pixels.detach()])

    run_step = Graphed(step_once)
    clock = Clock(steps, stop)
    with log.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("step", "loss", "pixel_error", "seconds"))
        for step in range(1, steps + 1):
            rate.fill_(learning_rate * min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * clock.done(step))))
            result = run_step()
            if step % 100 == 0:
                loss, pixels = result.tolist()
                seconds = clock.read()
                rows.writerow((step, round(loss, 5), round(pixels, 5), round(seconds, 1)))
                file.flush()
                if step % 1000 == 0:
                    print(step, round(loss, 5), round(pixels, 5), round(seconds, 1), flush=True)
                if clock.done(step) == 1:
                    break
    average.store()


@torch.no_grad()
def fit_normalisation(vae: WanVAE, frames: Tensor) -> None:
    """Rescale the latents so that, normalised as every Wan 2.1 latent is, they have mean 0 and variance 1."""
    latents = torch.cat([vae.posterior(to_video(part))[0] for part in frames.split(64)])
    vae.normalise(latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4)))


def main(arguments: list[str]) -> None:
    """Draw, train, normalise, save as fp16."""
    parser = argparse.ArgumentParser(prog="tools.nano vae", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--tests", type=int, default=256, help="clips that the result is tested on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="a VAE to go on from (default: the made one)")
    parser.add_argument("--stop", type=float, default=math.inf, help="seconds of training at most")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    start = time.perf_counter()
    frames = training_frames(options.seed, options.clips).to(device())
    print(f"drew {len(frames)} clips in {time.perf_counter() - start:.0f} s", flush=True)
    vae = WanVAE(VAE_DIM)
    start_tensors = load_file(options.start) if options.start else wan_vae(VAE_DIM)
    vae.load_state_dict({name: tensor.float() for name, tensor in start_tensors.items()})
    vae = vae.to(device())
    train(
        vae, frames, steps=options.steps, batch_size=options.batch_size, learning_rate=options.learning_rate,
        log=options.log, stop=options.stop,
    )  # fmt: skip
    vae.eval()
    fit_normalisation(vae, frames[:1024])
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in vae.state_dict().items()}
    options.file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.file)
    halves = WanVAE(VAE_DIM).to(device()).eval()
    halves.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    scenes = [scene for scene, _ in islice(test_scenes(options.seed), options.tests)]
    test = to_video(torch.from_numpy(draw_all(scenes)).to(device()))
    shown = torch.cat([halves.decode(halves.encode(part)) for part in test.split(32)])
    error = functional.l1_loss(shown, test).item()
    right = shares([judge(clip) for clip in to_frames(shown).cpu().numpy()], scenes)
    print(f"unseen clips, fp16 file: error {error * 127.5:.2f} of 255 grey levels, judged right {right}", flush=True)
