"""Runs the Wan training script of a DiffSynth-Studio checkout as it is, and writes a line of JSON for every step.

accelerate launch [its options] diffsynth_launch.py CHECKOUT RECORDS [options of train.py]

Each process writes its own lines, to RECORDS with its rank in the name. The script never waits for the device within a run,
so a step is timed by CUDA events, which do not wait either: its lines are written when the device has passed them.
What no step uses, and needs packages of its own, is stood in for. DIFFSYNTH_MODEL_SIZES, a JSON object with a model
file and the sizes of its configuration, makes that file known (a dry run).
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
from typing import Any

import torch


class Watch:
    """The steps of this process, and what they took."""

    def __init__(self, records: Path):
        self._records = records
        self._marks: list[Any] = []  # the start of the first step, and the end of each, of those not written yet
        self._shape: tuple[int, ...] = ()
        self._peaks: list[dict[str, float]] = []
        self._written = 0

    def begin(self, latents: torch.Tensor) -> None:
        """A step starts, on latents [1, C, F, H, W]."""
        self._shape = tuple(latents.shape)
        if not self._marks:
            self._marks.append(_now())
            _reset_peaks()  # what loading took

    def end(self) -> None:
        """The host is done with a step."""
        self._marks.append(_now())
        self._peaks.append(_peaks())
        while len(self._marks) > 1 and (not torch.cuda.is_available() or self._marks[1].query()):
            self._write()

    def finish(self) -> None:
        """Wait for the device, and write the lines that are left."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        while len(self._marks) > 1:
            self._write()

    def _write(self) -> None:
        start, end = self._marks[:2]
        seconds = start.elapsed_time(end) / 1000 if torch.cuda.is_available() else end - start
        line = {"shape": self._shape, "s": seconds, "first": self._written == 0, **self._peaks.pop(0)}
        with self._records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._written += 1
        del self._marks[0]


def _now() -> Any:
    """A point in the work of the device; without one, of the clock."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _reset_peaks() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peaks() -> dict[str, float]:
    """Peaks since the last step, in GB of 1e9 bytes. Memory is given out by the host, so they are those of this step."""
    if not torch.cuda.is_available():
        return {}
    values = {
        "peak_allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        "peak_reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }
    _reset_peaks()
    return values


def watch_steps(watch: Watch) -> None:
    """Put `watch` around the trainer's own functions; it changes none of their values."""
    import diffsynth.diffusion as diffusion
    from diffsynth.diffusion.logger import ModelLogger

    get_loss, step_done, training_done = (
        diffusion.FlowMatchSFTLoss,
        ModelLogger.on_step_end,
        ModelLogger.on_training_end,
    )

    def loss(pipe, **inputs):
        watch.begin(inputs["input_latents"])
        return get_loss(pipe, **inputs)

    def on_step_end(self, *args, **options):
        step_done(self, *args, **options)
        watch.end()

    def on_training_end(self, *args, **options):
        watch.finish()
        training_done(self, *args, **options)

    diffusion.FlowMatchSFTLoss = loss
    ModelLogger.on_step_end = on_step_end
    ModelLogger.on_training_end = on_training_end


def stand_in() -> None:
    """For modelscope, by which it downloads models, where that is not installed; and for the reader of sound (librosa)."""
    if importlib.util.find_spec("modelscope") is None:
        absent: Any = types.ModuleType("modelscope")
        absent.__spec__ = importlib.machinery.ModuleSpec("modelscope", None)
        absent.snapshot_download = None
        sys.modules["modelscope"] = absent
    from diffsynth.core.data import operators

    operators.LoadAudio.__init__ = lambda *_, **__: None


def know_model(path: str, sizes: dict[str, Any]) -> None:
    """Add a model of these sizes to those that it knows by the names and shapes of a file's tensors."""
    from diffsynth.configs import MODEL_CONFIGS
    from diffsynth.core.loader import hash_model_file

    MODEL_CONFIGS.append(
        {
            "model_hash": hash_model_file(path),
            "model_name": "wan_video_dit",
            "model_class": "diffsynth.models.wan_video_dit.WanModel",
            "extra_kwargs": sizes,
        }
    )


def main() -> None:
    """Prepare, then become the script."""
    checkout, records = (Path(argument) for argument in sys.argv[1:3])
    script = checkout / "examples" / "wanvideo" / "model_training" / "train.py"
    sys.path[0] = str(checkout)  # in the place of this folder, whose names would hide packages
    stand_in()
    if known := json.loads(os.environ.get("DIFFSYNTH_MODEL_SIZES", "{}")):
        know_model(**known)
    watch_steps(Watch(records.with_name(f"{records.stem}-{os.environ.get('RANK', '0')}{records.suffix}")))
    sys.argv = [str(script), *sys.argv[3:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
