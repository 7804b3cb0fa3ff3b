"""Checks that need a GPU: gradients in bf16 against fp32, and what resume costs in exactness there.

python benchmarks/gpu_checks.py
python benchmarks/gpu_checks.py --deterministic

With --deterministic all three runs have that option, and must have the same bits.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK))
import wantrain  # noqa: E402

wantrain.load_pack()
from safetensors.torch import load_file  # noqa: E402
from wan_train.benchmarks.full_size import make_job  # noqa: E402
from wan_train.benchmarks.material import Clip, write_checkpoint  # noqa: E402
from wan_train.core.memory.deterministic import set_environment  # noqa: E402
from wan_train.core.train.batches import BatchSchedule  # noqa: E402
from wan_train.core.train.events import EventReader, EventWriter  # noqa: E402
from wan_train.core.train.loop import Trainer  # noqa: E402
from wan_train.core.train.optimizers import build_optimizer  # noqa: E402
from wan_train.core.train.prepare import prepare  # noqa: E402
from wan_train.core.train.run import RunStoppedError, run_job  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402
from wan_train.core.wan.config import WanConfig  # noqa: E402

DEVICE = torch.device("cuda:0")
SMALL = WanConfig(dim=512, ffn_dim=1024, num_heads=4, num_layers=4)


def gradients(job, precision: str, rounds: int = 2) -> dict[str, torch.Tensor]:
    """LoRA gradients by name after `rounds` steps, so that a stale attention graph would show."""
    prepared = prepare(replace(job, model=replace(job.model, precision=precision)), DEVICE)
    schedule = BatchSchedule(job.data, batch_size=1, seed=1, caption_dropout=0.0)

    class Direct:
        def get(self, index):
            return schedule.load(index)

    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=build_optimizer(prepared.parameters, job.optimizer),
        batches=Direct(),
    )
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    with torch.no_grad():
        for p in prepared.parameters:
            p.add_(torch.randn(p.shape, device=DEVICE, generator=generator) * 0.02)
    for index in range(rounds):
        for p in prepared.parameters:
            p.grad = None
        noisy = trainer.add_noise(trainer.batches.get(index), index)
        for terms in trainer.objective.terms(noisy, trainer.forwards):
            sum(term.weight * term.losses for term in terms).mean().backward()
    names = {id(parameter): name for name, parameter in prepared.model.named_parameters()}
    return {names[id(p)]: p.grad.float().cpu() for p in prepared.parameters}


def compare_precisions(folder: Path) -> None:
    """Relative difference of the bf16 gradients from the fp32 ones, worst and overall."""
    model = folder / "small.safetensors"
    write_checkpoint(model, SMALL)
    job = make_job(folder, model, Clip(416, 240, 17), 4)
    exact, rounded = gradients(job, "fp32"), gradients(job, "bf16")
    each = {name: ((a - rounded[name]).norm() / a.norm()).item() for name, a in exact.items()}
    whole = torch.cat([a.flatten() for a in exact.values()])
    difference = torch.cat([(a - rounded[name]).flatten() for name, a in exact.items()])
    worst = max(each, key=each.__getitem__)
    largest = max(a.norm() for a in exact.values())
    print(
        f"bf16 against fp32 gradients: overall {(difference.norm() / whole.norm()).item():.4f}, worst {each[worst]:.4f} "
        f"in {worst}, whose gradient is {(exact[worst].norm() / largest).item():.1e} of the largest one"
    )


def compare_resume(folder: Path, *, deterministic: bool) -> None:
    """Largest difference between a run that was stopped and one that was not."""
    job = make_job(folder, folder / "small.safetensors", Clip(416, 240, 17), 12)
    job = replace(job, memory=replace(job.memory, deterministic=deterministic))
    loras = {}
    for name in ("whole", "again", "parts"):
        run = RunFolder(folder / name)
        run.path.mkdir()
        run.write_job(job)
        events = EventWriter(run.events_path)

        def stop(run=run, name=name) -> bool:
            steps = [e for e in EventReader(run.events_path).read() if e["event"] == "step"]
            return name == "parts" and len(steps) == 5

        try:
            loras[name] = run_job(run, events, DEVICE, stop)
        except RunStoppedError:
            loras[name] = run_job(run, events, DEVICE, lambda: False)
    weights = {name: load_file(path) for name, path in loras.items()}
    for other in ("again", "parts"):
        worst = max((weights["whole"][k] - weights[other][k]).abs().max().item() for k in weights["whole"])
        print(f"largest difference between 'whole' and '{other}': {worst:g}")
        if deterministic and worst:
            sys.exit("deterministic is on, and the bits are not the same")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    if options.deterministic:
        set_environment()  # before the first product
    place = Path(tempfile.mkdtemp())
    compare_precisions(place)
    compare_resume(place, deterministic=options.deterministic)
