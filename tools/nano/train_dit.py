"""Trains the nano experts; first `data`, then `high` and `low` (one GPU, some minutes):

python -m tools.nano dit data DATA --family FOLDER
python -m tools.nano dit high DATA --family FOLDER --log CSV

All parameters are trained, with the core's model, sigmas, target and loss, each expert on its side of 0.875.
"""

import argparse
import csv
import json
import math
import random
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...core.facts import BOUNDARY_T2V_A14B, NUM_TIMESTEPS, TEXT_TOKENS
from ...core.flow.objective import add_noise, flow_loss, velocity_target
from ...core.flow.sigmas import sigma_at
from ...core.settings.job import Stage, stage_window
from ...core.settings.timesteps import TimestepOptions
from ...core.wan.config import WanConfig
from ...core.wan.model import WanTransformer
from . import world
from .drawing import draw_all
from .family import T2V, Files
from .graphed import Averaged, Clock, Graphed, adamw, device
from .text import TextEncoder
from .vae import load_vae, to_video

PHRASINGS = 3  # captions kept for each clip
MAX_TOKENS = 40
STILLS = 0.15  # share of batches of single frames
LOG_EVERY = 200  # steps


@dataclass
class Data:
    """Everything encoded, on one device: latents of clips and stills, and captions of each."""

    latents: dict[str, Tensor]  # [N, C, F, H, W] half
    contexts: dict[str, Tensor]  # [N * PHRASINGS, MAX_TOKENS, D] half, zeros behind the end
    empty: Tensor  # [MAX_TOKENS, D]

    def batch(self, kind: str, chosen: Tensor, phrasing: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, C, F, H, W] and contexts [B, 512, D], float32."""
        context = self.contexts[kind][chosen * PHRASINGS + phrasing].float()
        context = torch.where(dropped.view(-1, 1, 1), self.empty.float(), context)
        return self.latents[kind][chosen].float(), torch.nn.functional.pad(context, (0, 0, 0, TEXT_TOKENS - MAX_TOKENS))


def make_data(family: Files, *, clips: int, stills: int, seed: int) -> dict[str, Tensor]:
    """Draw and encode: `latents.KIND`, `contexts.KIND` and `empty`, on the CPU."""
    vae, text = load_vae(family.vae).to(device()), TextEncoder(family.text_encoder, device().type)
    source = world.scenes(seed, "train")
    made: dict[str, Tensor] = {"empty": _padded(*text.encode([""]))[0]}
    for kind, count, frames in (("clips", clips, world.NUM_FRAMES), ("stills", stills, 1)):
        scenes = list(islice(source, count))
        rng = random.Random(seed + frames)
        latents = []
        for start in range(0, count, 4096):
            drawn = torch.from_numpy(draw_all(scenes[start : start + 4096], frames))
            latents += [vae.encode(to_video(part.to(device()))).half().cpu() for part in drawn.split(128)]
        captions = [world.caption(s, rng, still=kind == "stills") for s in scenes for _ in range(PHRASINGS)]
        contexts = [_padded(*text.encode(captions[i : i + 2048])) for i in range(0, len(captions), 2048)]
        made |= {f"latents.{kind}": torch.cat(latents).contiguous(), f"contexts.{kind}": torch.cat(contexts)}
        print(f"{count} {kind}: std of the latents {made[f'latents.{kind}'].float().std():.3f}", flush=True)
    return made


def _padded(context: Tensor, _lengths: Tensor) -> Tensor:
    if context.shape[1] > MAX_TOKENS:
        raise ValueError(f"a caption has {context.shape[1]} tokens, more than {MAX_TOKENS}")
    return torch.nn.functional.pad(context, (0, 0, 0, MAX_TOKENS - context.shape[1])).half().cpu()


def load_data(path: Path) -> Data:
    """What `make_data` made, where training runs."""
    tensors = {name: tensor.to(device()) for name, tensor in load_file(path).items()}
    kinds = ("clips", "stills")
    return Data(
        {kind: tensors[f"latents.{kind}"] for kind in kinds},
        {kind: tensors[f"contexts.{kind}"] for kind in kinds},
        tensors["empty"],
    )


def new_model(seed: int) -> WanTransformer:
    """A transformer with the official initialisation (Wan2.2, wan/modules/model.py)."""
    torch.manual_seed(seed)
    sizes = {name: getattr(T2V, name) for name in ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim")}
    model = WanTransformer(WanConfig(**sizes))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.xavier_uniform_(model.patch_embedding.weight.flatten(1))
    for layer in (model.text_embedding[0], model.text_embedding[2], model.time_embedding[0], model.time_embedding[2]):
        torch.nn.init.normal_(layer.weight, std=0.02)
    torch.nn.init.zeros_(model.head.head.weight)
    return model


@dataclass(frozen=True)
class Options:
    """Of one expert's training."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    ema_decay: float = 0.999
    caption_dropout: float = 0.1
    weight_decay: float = 0.01
    warm_up: int = 500
    stop: float = math.inf  # seconds of training at most


def train(model: WanTransformer, data: Data, stage: Stage, options: Options, log: Path) -> None:
    """The official flow-matching objective over the expert's window; the averaged weights stay in the model."""
    low, high = stage_window(stage, BOUNDARY_T2V_A14B)
    timesteps = TimestepOptions(sampling="uniform", sigma_min=low, sigma_max=high)
    parameters = list(model.parameters())
    optimizer, rate = adamw(parameters, options.weight_decay)
    average = Averaged(parameters, options.ema_decay)
    place = parameters[0].device
    for latents in data.latents.values():  # made on the CPU: kept out of the compiled graphs
        model.rope((latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2), place)
    forward = torch.compile(model, dynamic=False) if place.type == "cuda" else model

    def step_once(kind: str) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        size = (options.batch_size,)
        chosen = torch.randint(len(data.latents[kind]), size, device=place)
        phrasing = torch.randint(PHRASINGS, size, device=place)
        dropped = torch.rand(size, device=place) < options.caption_dropout
        latents, context = data.batch(kind, chosen, phrasing, dropped)
        u = (torch.rand(size, device=place) + torch.arange(size[0], device=place)) / size[0]
        sigmas = sigma_at(u, timesteps).float()
        noise = torch.randn_like(latents)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            pred = forward(add_noise(latents, noise, sigmas), sigmas * NUM_TIMESTEPS, context)
        loss = flow_loss(pred, velocity_target(latents, noise)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        return loss.detach()

    run_step = {kind: Graphed(partial(step_once, kind)) for kind in data.latents}
    kinds = random.Random(options.seed)
    losses: list[Tensor] = []
    clock = Clock(options.steps, options.stop)
    with log.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("step", "loss", "learning_rate", "seconds"))
        for step in range(1, options.steps + 1):
            learning_rate = options.learning_rate * rate_scale(step, clock.done(step), options.warm_up)
            rate.fill_(learning_rate)
            kind = "stills" if kinds.random() < STILLS else "clips"
            loss = run_step[kind]()
            if kind == "clips":
                losses.append(loss.clone())
            if step % LOG_EVERY == 0:
                mean, losses = torch.stack(losses).mean().item(), []
                seconds = clock.read()
                rows.writerow((step, round(mean, 5), f"{learning_rate:.2e}", round(seconds, 1)))
                file.flush()
                if step % (10 * LOG_EVERY) == 0:
                    print(stage, step, round(mean, 5), f"{learning_rate:.2e}", round(seconds, 1), flush=True)
                if clock.done(step) == 1:
                    break
    average.store()


def rate_scale(step: int, done: float, warm_up: int) -> float:
    """A linear warm-up, under a cosine over the whole training down to a hundredth."""
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def save(model: WanTransformer, path: Path) -> None:
    """fp16, with the sizes that ComfyUI cannot read off the tensors in the header."""
    header = {"config": json.dumps({"transformer": {"num_heads": T2V.num_heads, "text_dim": T2V.text_dim}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().cpu() for name, tensor in model.state_dict().items()}, path, metadata=header)


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="tools.nano dit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("data", "high", "low"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--clips", type=int, default=40_000)
    parser.add_argument("--stills", type=int, default=8_000)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warm-up", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--stop", type=float, default=math.inf, help="seconds of training at most")
    parser.add_argument("--start", type=Path, help="the file of an expert to go on from")
    options = parser.parse_args(arguments)
    family = Files(options.family)
    torch.backends.cuda.matmul.allow_tf32 = True
    if options.what == "data":
        start = time.perf_counter()
        save_file(make_data(family, clips=options.clips, stills=options.stills, seed=options.seed), options.data)
        print(f"data made in {time.perf_counter() - start:.0f} s", flush=True)
        return
    seed = options.seed + ("high", "low").index(options.what)
    model = new_model(seed).to(device()).train()
    if options.start:
        model.load_state_dict(load_file(options.start))
    settings = Options(
        options.steps, options.batch_size, options.learning_rate, seed, warm_up=options.warm_up, stop=options.stop
    )
    train(model, load_data(options.data), options.what, settings, options.log)
    save(model, family.dit(options.what))
