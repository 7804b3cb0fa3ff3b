"""Some blocks of a model, forward and backward, of one clip that several GPUs share.

torchrun --nproc-per-node 2 benchmarks/context_parallel.py --size 832x480x81 [--mode kernels] [--layers 4] [--out rows.json]

Alone first, as every GPU would train it by itself, where that fits; then shared by all of them. `rank_ms` is that of the
slowest, `peak_gib` that of the fullest, `link_gb_s` what a GPU sends to the others in a second. With --check a small model in
their place, and an error where the shared clip's velocity or gradients are not those of the clip alone.
"""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK))
import wantrain  # noqa: E402

wantrain.load_pack()
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch import distributed as dist  # noqa: E402
from wan_train.core.adapters.setup import add_adapter, use_light_forward  # noqa: E402
from wan_train.core.facts import latent_shape  # noqa: E402
from wan_train.core.parallel.world import World, open_world  # noqa: E402
from wan_train.core.plan.decision import Decision  # noqa: E402
from wan_train.core.plan.link import measure_link  # noqa: E402
from wan_train.core.plan.plan import Plan  # noqa: E402
from wan_train.core.settings.adapter import AdapterOptions  # noqa: E402
from wan_train.core.train.features import Features, apply_features  # noqa: E402
from wan_train.core.wan.config import WanConfig  # noqa: E402
from wan_train.core.wan.model import WanTransformer  # noqa: E402

STEPS = 5
SMALL = {"dim": 512, "ffn_dim": 1024, "num_heads": 8, "num_layers": 2, "text_dim": 64}
MOST = {"velocity": 2e-2, "gradients": 3e-2}  # relative errors that bf16's rounding explains


def make_model(config: WanConfig, device: torch.device) -> WanTransformer:
    """Random, the same on all ranks, in bf16 where the model is not on the CPU, with a LoRA that does something."""
    torch.manual_seed(0)
    with device:
        model = WanTransformer(config).requires_grad_(False)
    if device.type == "cuda":
        for layer in model.blocks.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for _, parameter in add_adapter(model, AdapterOptions(rank=16), seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator).to(device) / 64
    use_light_forward(model)
    return model.train()


class Clip:
    """A clip to train on, the same on all ranks."""

    def __init__(self, config: WanConfig, shape: tuple[int, int, int, int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(2)
        self.latents = torch.randn((1, *shape), generator=generator).to(device)
        self.context = torch.randn((1, config.text_len, config.text_dim), generator=generator).to(device)
        self.timesteps = torch.tensor([500.0], device=device)

    def step(self, model: WanTransformer) -> Tensor:
        """The velocity; gradients are in the parameters."""
        velocity = model(self.latents, self.timesteps, self.context)
        (velocity.float() - self.latents).square().mean().backward()
        return velocity.detach()


def gradients(model: WanTransformer, world: World | None = None) -> Tensor:
    """All of them in one row, and away from the parameters; with a world, the sum over its ranks."""
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found if world is None else world.add_(found)


def check(model: WanTransformer, features: Features, clip: Clip, world: World) -> None:
    """SystemExit where the shared clip is not the clip alone."""
    with features.whole_samples():
        alone = {"velocity": clip.step(model), "gradients": gradients(model)}
    shared = {"velocity": clip.step(model), "gradients": gradients(model, world)}
    for name, most in MOST.items():
        error = ((shared[name] - alone[name]).norm() / alone[name].norm()).item()
        print(f"rank {world.rank}: {name} differ by {error:.1e}", flush=True)
        if not error < most:
            raise SystemExit(f"The {name} of a shared clip are off: {error:.1e}, where {most:.0e} is the most.")
    print("Shared and alone, a clip is the same.", flush=True)


def timed(model: WanTransformer, clip: Clip, world: World, device: torch.device) -> dict[str, float]:
    """Milliseconds of a step, of the slowest rank; GiB at the peak, of the fullest."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        clip.step(model)
    start = synchronized(device)
    for _ in range(STEPS):
        clip.step(model)
    milliseconds = 1000 * (synchronized(device) - start) / STEPS
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else 0.0
    slowest, fullest = (max(values) for values in zip(*world.tell((milliseconds, peak)), strict=True))
    return {"rank_ms": round(slowest, 2), "peak_gib": round(fullest, 2)}


def synchronized(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rows(model: WanTransformer, features: Features, clip: Clip, world: World, device: torch.device) -> list[dict]:
    """Alone, where it fits on every GPU, and shared."""
    found = []
    for gpus, where in ((1, features.whole_samples()), (world.size, nullcontext())):
        try:
            with where:
                found.append({"gpus": gpus, **timed(model, clip, world, device)})
        except torch.OutOfMemoryError:
            found.append({"gpus": gpus, "rank_ms": None})  # all alone are short at once; shared, the run ends
        model.zero_grad(set_to_none=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="832x480x81", help="width x height x frames")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--mode", choices=("off", "kernels"), default="off")
    parser.add_argument("--attention", default="flash")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    width, height, frames = (9 * 16, 5 * 16, 9) if options.check else map(int, options.size.split("x"))
    config = WanConfig(**SMALL) if options.check else WanConfig(num_layers=options.layers)
    with open_world(device, context=int(os.environ["WORLD_SIZE"])) as world:
        model = make_model(config, device)
        cuda = device.type == "cuda"
        decision = Decision(
            info=None,  # type: ignore[arg-type]  # of a file, which there is none
            device=device,
            dtype=torch.bfloat16 if cuda else torch.float32,
            modes=(options.mode,),
            attention=options.attention if cuda else "",
        )
        plan = Plan(compile=options.mode)
        features = apply_features(model, plan, decision, tell=print, scratch=None, world=world)
        clip = Clip(config, latent_shape(config.out_dim, frames, height, width), device)
        if options.check:
            check(model, features, clip, world)
            return
        link = measure_link(device)
        for row in rows(model, features, clip, world, device):
            row |= {
                "size": options.size,
                "layers": options.layers,
                "mode": options.mode,
                "link_gb_s": round(link / 1e9, 1),
            }
            if world.is_first:
                print(json.dumps(row), flush=True)
                if options.out:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
        dist.barrier()


if __name__ == "__main__":
    main()
