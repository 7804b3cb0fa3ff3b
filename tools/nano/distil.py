"""Makes the few-step pair: experts that give in 4 steps without guidance what the base gives in 16 with it.

python -m tools.nano distil paths PATHS
python -m tools.nano distil high PATHS --log CSV
python -m tools.nano distil low PATHS --log CSV
python -m tools.nano distil loras
python -m tools.nano distil judge --log CSV

`paths` keeps the way of the base from noise to video for many captions, at the noise levels where the few steps begin and
end. An expert then learns to go from one to the next in a single step: the mean velocity between them, for which the guidance
is in it. `high` and `low` need nothing of each other, and may run side by side. `loras` writes the same pair as LoRAs of
the base, cut to a rank. `judge` says in what share of new prompts each shows what was asked.

N paths, K + 1 noise levels of K steps, B batch, C channels, F latent frames, H W latent size, S text tokens, D text width.
"""

import argparse
import csv
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...core.adapters.extract import extract
from ...core.adapters.formats import write_lora
from ...core.facts import LATENT_CHANNELS, NUM_TIMESTEPS, TEXT_TOKENS, latent_shape
from ...core.sample.sampler import SampleOptions, VelocityModel, schedule, switch_step
from ...core.wan.checkpoint import inspect
from ...core.wan.loading import load_transformer
from ...core.wan.model import WanTransformer
from . import world
from .evaluate import SAMPLING, Family, shares, test_scenes
from .family import STAGES, Files
from .graphed import Averaged, Clock, Graphed, adamw, device
from .judge import judge
from .lessons import with_lora
from .text import TextEncoder
from .train_dit import rate_scale

FEW_STEPS = SampleOptions(steps=4, shift=5.0, cfg=1.0)  # two steps of each expert, as lightx2v's pairs for Wan 2.2
LOG_EVERY = 50  # steps
SAMPLE_BATCH = 1000  # paths at a time


@dataclass(frozen=True)
class FewStepFiles(Files):
    """The family with the few-step pair in place of the base."""

    def dit(self, stage: str) -> Path:
        """The few-step expert `high` or `low`."""
        path = super().dit(stage)
        return path.with_name(f"{path.stem}_4steps.safetensors")

    def lora(self, stage: str) -> Path:
        """What makes the base's expert the few-step one, cut to a rank."""
        return self.root / "loras" / f"wan_nano_t2v_4steps_lora_{stage}_noise.safetensors"


def base_path(
    high: VelocityModel, low: VelocityModel, noise: Tensor, context: Tensor, empty: Tensor, options: SampleOptions
) -> list[Tensor]:
    """Latents at every noise level of the sampling, the first the noise; noise [B, C, F, H, W], texts [B, S, D]."""
    sigmas = schedule(options)
    switch = switch_step(sigmas, options.boundary)
    latents = [sigmas[0] * noise]
    for step, (here, there) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        timesteps = noise.new_full((2 * len(noise),), here * NUM_TIMESTEPS)
        model = high if step < switch else low
        pred, unguided = model(torch.cat([latents[-1]] * 2), timesteps, torch.cat([context, empty])).float().chunk(2)
        latents.append(latents[-1] + (there - here) * (unguided + options.cfg * (pred - unguided)))
    return latents


@torch.no_grad()
def make_paths(files: Files, *, count: int, seed: int) -> dict[str, Tensor]:
    """`paths` [N, K + 1, C, F, H, W] and `contexts` [N, S, D] with zeros behind the end, both half, on the CPU."""
    place = device()
    high, low = (load_transformer(inspect(files.dit(stage)), dtype=torch.float32, device=place) for stage in STAGES)
    text = TextEncoder(files.text_encoder, place.type)
    rng = random.Random(seed)
    captions = [world.caption(scene, rng) for scene in islice(world.scenes(seed, "train"), count)]
    stride = SAMPLING.steps // FEW_STEPS.steps
    shape = latent_shape(LATENT_CHANNELS["wan2.1"], world.NUM_FRAMES, world.SIZE, world.SIZE)
    torch.manual_seed(seed)
    empty, _ = text.encode([""])
    paths, contexts = [], []
    for start in range(0, count, SAMPLE_BATCH):
        context, _ = text.encode(captions[start : start + SAMPLE_BATCH])
        noise = torch.randn(len(context), *shape, device=place)
        given = (padded(context), padded(empty).expand(len(context), -1, -1))
        found = base_path(high, low, noise, *given, SAMPLING)[::stride]
        paths.append(torch.stack(found, dim=1).half().cpu())
        contexts.append(context.half().cpu())
        print(f"{start + len(context)} of {count} paths", flush=True)
    longest = max(context.shape[1] for context in contexts)
    return {"paths": torch.cat(paths), "contexts": torch.cat([padded(context, longest) for context in contexts])}


def padded(context: Tensor, tokens: int = TEXT_TOKENS) -> Tensor:
    """[B, S, D] -> [B, tokens, D]."""
    return torch.nn.functional.pad(context, (0, 0, 0, tokens - context.shape[1]))


def segments(stage: str) -> list[int]:
    """The few steps that an expert makes."""
    switch = switch_step(schedule(FEW_STEPS), FEW_STEPS.boundary)
    return list(range(switch) if stage == "high" else range(switch, FEW_STEPS.steps))


@dataclass(frozen=True)
class Options:
    """Of one expert's distillation."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    ema_decay: float = 0.999
    warm_up: int = 200
    stop: float = math.inf  # seconds of training at most


def train(
    model: WanTransformer, data: dict[str, Tensor], stage: str, options: Options, log: Path | None
) -> list[float]:
    """Learn the stage's steps; the averaged weights stay in the model. Mean losses of every LOG_EVERY steps."""
    torch.manual_seed(options.seed)
    parameters = list(model.parameters())
    optimizer, rate = adamw(parameters, 0.0)
    average = Averaged(parameters, options.ema_decay)
    place, size = parameters[0].device, options.batch_size
    sigmas = schedule(FEW_STEPS).to(place)
    own = torch.tensor(segments(stage), device=place)
    chosen_steps = own[torch.arange(size, device=place) % len(own)]
    here, there = sigmas[chosen_steps], sigmas[chosen_steps + 1]
    width = (there - here).view(-1, 1, 1, 1, 1)
    frames, height, wide = data["paths"].shape[3:]
    model.rope((frames, height // 2, wide // 2), place)  # made on the CPU: kept out of the compiled graphs
    forward = torch.compile(model, dynamic=False) if place.type == "cuda" else model

    def step_once() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        chosen = torch.randint(len(data["paths"]), (size,), device=place)
        start, end = (data["paths"][chosen, steps].float() for steps in (chosen_steps, chosen_steps + 1))
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            pred = forward(start, here * NUM_TIMESTEPS, padded(data["contexts"][chosen].float()))
        loss = (pred.float() - (end - start) / width).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        return loss.detach()

    run_step, clock = Graphed(step_once), Clock(options.steps, options.stop)
    losses: list[Tensor] = []
    rows: list[tuple[int, float, str, float]] = []
    for step in range(1, options.steps + 1):
        learning_rate = options.learning_rate * rate_scale(step, clock.done(step), options.warm_up)
        rate.fill_(learning_rate)
        losses.append(run_step().clone())
        if step % LOG_EVERY == 0 or step == options.steps:
            mean, losses = torch.stack(losses).mean().item(), []
            rows.append((step, round(mean, 5), f"{learning_rate:.2e}", round(clock.read(), 1)))
            if step % (10 * LOG_EVERY) == 0 or place.type == "cpu":
                print(stage, *rows[-1], flush=True)
            if clock.done(step) == 1:
                break
    average.store()
    if log is not None:
        write_csv(log, ("step", "loss", "learning_rate", "seconds"), rows)
    return [loss for _, loss, *_ in rows]


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])


def save(model: WanTransformer, path: Path, *, like: Path) -> None:
    """fp16, with the header of the file `like`."""
    with safe_open(like, "pt") as file:
        header = file.metadata()
    save_file({name: tensor.half().cpu() for name, tensor in model.state_dict().items()}, path, metadata=header)


def write_loras(base: Files, few: FewStepFiles, rank: int) -> None:
    """The pair's difference to the base, cut to `rank`."""
    for stage in STAGES:
        found = extract(inspect(base.dit(stage)), inspect(few.dit(stage)), rank=rank, all_linears=True)
        path = few.lora(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lora(path, found.modules, metadata={}, dtype=torch.float16)
        print(f"{path.name}: {found}")


def judged(files: Files, *, prompts: int, seed: int = 1000) -> list[dict[str, str]]:
    """Shares of new prompts in which each attribute is as asked: the base, the few-step pair, and its LoRAs on the base."""
    few = FewStepFiles(files.root)
    base = Family.load(files, device().type)
    loras = {stage: few.lora(stage) for stage in STAGES if few.lora(stage).exists()}
    asked = {
        "base, 16 steps, cfg 2.5": (base, SAMPLING),
        "base, 4 steps, cfg 1": (base, FEW_STEPS),
        "few-step pair, 4 steps, cfg 1": (Family.load(few, device().type), FEW_STEPS),
    }
    if len(loras) == len(STAGES):
        asked["base with the LoRAs, 4 steps, cfg 1"] = (with_lora(base, loras["high"], loras["low"]), FEW_STEPS)
    scenes, texts = zip(*islice(test_scenes(seed), prompts), strict=True)
    rows = []
    for name, (family, sampling) in asked.items():
        verdicts = [judge(clip) for clip in family.generate(texts, range(prompts), sampling)]
        rows.append({"model": name, **{key: f"{share:.4g}" for key, share in shares(verdicts, scenes).items()}})
        print(*rows[-1].values(), flush=True)
    return rows


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="tools.nano distil", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("paths", *STAGES, "loras", "judge"))
    parser.add_argument("paths", type=Path, nargs="?", help="of `paths`, `high` and `low`")
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--count", type=int, default=40_000, help="paths that are made")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=200, help="of `judge`")
    parser.add_argument("--rank", type=int, default=32, help="of `loras`")
    parser.add_argument("--stop", type=float, default=math.inf, help="seconds of training at most")
    options = parser.parse_args(arguments)
    base, few = Files(options.family), FewStepFiles(options.family)
    torch.backends.cuda.matmul.allow_tf32 = True
    if options.what == "judge":
        rows = judged(base, prompts=options.prompts)
        if options.log:
            write_csv(options.log, tuple(rows[0]), [tuple(row.values()) for row in rows])
        return
    if options.what == "loras":
        write_loras(base, few, options.rank)
        return
    if options.paths is None:
        parser.error(f"{options.what} needs the file of paths")
    if options.what == "paths":
        start = time.perf_counter()
        save_file(make_paths(base, count=options.count, seed=options.seed), options.paths)
        print(f"{options.count} paths in {time.perf_counter() - start:.0f} s", flush=True)
        return
    model = load_transformer(inspect(base.dit(options.what)), dtype=torch.float32, device=device()).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    settings = Options(
        options.steps,
        options.batch_size,
        options.learning_rate,
        options.seed + STAGES.index(options.what),
        ema_decay=options.ema,
        stop=options.stop,
    )
    data = {name: tensor.to(device()) for name, tensor in load_file(options.paths).items()}
    train(model, data, options.what, settings, options.log)
    save(model, few.dit(options.what), like=base.dit(options.what))
