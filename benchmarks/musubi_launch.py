"""Runs the training script of a musubi-tuner checkout as it is, and writes a line of JSON for every step.

python musubi_launch.py CHECKOUT RECORDS DUMPS [options of wan_train_network.py]

It watches from outside: the loop reads the loss, for which it waits for the device, and then sets the postfix of its
progress bar, which is where a step is taken to end. The data come in the order of the files and are not shuffled, so that
clips of one size follow each other. The tensors of the first step of each size are saved, with the loss, so that another
trainer can be given the same. MUSUBI_MODEL_SIZES, a JSON object, replaces sizes of the model's configuration (a dry run).
"""

import importlib.machinery
import importlib.util
import json
import os
import runpy
import sys
import time
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

GB = 1e9


class Watch:
    """What is known of the step under way."""

    def __init__(self, records: Path, dumps: Path):
        self._records, self._dumps = records, dumps
        self._last: float | None = None
        self._seen: set[tuple[int, ...]] = set()
        self._shape: tuple[int, ...] = ()
        self._first: dict[str, torch.Tensor] | None = None

    def begin(self, latents: torch.Tensor, **tensors: torch.Tensor) -> None:
        """A step starts, on latents [1, C, F, H, W]."""
        self._shape = tuple(latents.shape)
        if self._last is None:
            self._last = time.perf_counter()
        if self._shape not in self._seen:
            self._first = {"latents": latents, **tensors}

    def add(self, **tensors: torch.Tensor) -> None:
        """Further tensors of the first step of a size."""
        if self._first is not None:
            self._first |= tensors

    def end(self) -> None:
        """The device is done with the step."""
        now = time.perf_counter()
        assert self._last is not None
        step = {
            "shape": self._shape,
            "s": now - self._last,
            "first": self._shape not in self._seen,
            "time": time.time(),
        }
        self._write({**step, **_memory()})
        if self._first is not None:
            clip = "x".join(map(str, self._shape[1:]))
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._first.items()}
            save_file(tensors, self._dumps / f"{clip}.safetensors")
        self._first = None
        self._seen.add(self._shape)
        self._last = time.perf_counter()

    def _write(self, record: dict) -> None:
        with self._records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _memory() -> dict[str, float]:
    """Peaks since the last step, in GB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 / GB for line in lines if line.startswith("VmHWM:")]
    values = {"ram_gb": max(peaks, default=0.0)}
    if torch.cuda.is_available():
        values["peak_allocated_gb"] = torch.cuda.max_memory_allocated() / GB
        values["peak_reserved_gb"] = torch.cuda.max_memory_reserved() / GB
        torch.cuda.reset_peak_memory_stats()
    return values


def keep_order() -> None:
    """No shuffling in any DataLoader."""
    from torch.utils.data import DataLoader

    make = DataLoader.__init__

    def make_in_order(self, *args, **options):
        make(self, *args, **{**options, "shuffle": False})

    DataLoader.__init__ = make_in_order


def watch_steps(watch: Watch) -> None:
    """Put `watch` around the trainer's own functions; it changes none of their values."""
    import tqdm
    from musubi_tuner.training.trainer_base import NetworkTrainer

    run_batch, add_noise, get_loss = (
        NetworkTrainer.process_batch,
        NetworkTrainer.get_noisy_model_input_and_timesteps,
        NetworkTrainer.compute_loss,
    )
    show = tqdm.tqdm.set_postfix

    def process_batch(self, args, accelerator, transformer, network, batch, latents, noise, *rest):
        watch.begin(latents, noise=noise, text=batch["t5"][0])
        return run_batch(self, args, accelerator, transformer, network, batch, latents, noise, *rest)

    def get_noisy(self, *args):
        noisy, timesteps = add_noise(self, *args)
        watch.add(noisy=noisy, timesteps=timesteps)
        return noisy, timesteps

    def compute_loss(self, *args):
        loss, metrics = get_loss(self, *args)
        watch.add(loss=loss)
        return loss, metrics

    def set_postfix(self, *args, **values):
        if (self.desc or "").startswith("steps"):
            watch.end()
        return show(self, *args, **values)

    NetworkTrainer.process_batch = process_batch
    NetworkTrainer.get_noisy_model_input_and_timesteps = get_noisy
    NetworkTrainer.compute_loss = compute_loss
    tqdm.tqdm.set_postfix = set_postfix


def main() -> None:
    """Prepare, then become the script."""
    checkout, records, dumps = (Path(argument) for argument in sys.argv[1:4])
    source = checkout / "src"
    script = source / "musubi_tuner" / "wan_train_network.py"
    sys.path[0] = str(source)  # in the place of this folder, whose names would hide packages
    for name in ("av",):  # reads video files, of which there are none here
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)  # transformers asks for it
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0  # a default argument of its text encoder asks for it at import
    keep_order()
    dumps.mkdir(parents=True, exist_ok=True)
    watch_steps(Watch(records, dumps))
    sys.argv = [str(script), *sys.argv[4:]]
    if sizes := json.loads(os.environ.get("MUSUBI_MODEL_SIZES", "{}")):
        from musubi_tuner.wan.configs import WAN_CONFIGS

        WAN_CONFIGS[sys.argv[sys.argv.index("--task") + 1]].update(sizes)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
