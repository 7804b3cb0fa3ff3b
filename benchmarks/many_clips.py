"""A large dataset of small clips: seconds for a thousand files, memory, and how long nothing is told, from scan to job.

python benchmarks/many_clips.py --clips 4000 10000 --folder /tmp/many_clips --out benchmarks/results/many-clips-cpu.json

Clips are 64x64 with 17 frames, of which one is used; they are made once, each with a caption of its own. Models are
miniature. For each number of clips two processes do what `wantrain train` does before its first step: the first has
everything to do, the second finds it all done. Memory is the most that a process held, those that it started included;
cpu_seconds are of the process alone. Only the second start tells by itself how long it was silent: in the first, another
process encodes and tells.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import av
import numpy as np
from safetensors.torch import save_file

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.core.launch.progress import ProgressDisplay  # noqa: E402
from wan_train.core.recipe.pipeline import prepare_recipe  # noqa: E402
from wan_train.core.recipe.recipe import recipe_from_tables  # noqa: E402
from wan_train.tools.mini_vae import wan_vae  # noqa: E402
from wan_train.tools.miniature import write_family  # noqa: E402

SIDE, FRAMES, USED, FPS = 64, 17, 1, 16


class Watch(ProgressDisplay):
    """Notes when each kind of work ended, and the longest time without a word."""

    def __init__(self) -> None:
        self.start = self._last = time.perf_counter()
        self.ends: dict[str, float] = {}
        self.longest_silence = 0.0

    def say(self, message: str, /) -> None:  # noqa: ARG002
        """A line."""
        self._told()

    def update(self, name: str, done: int, total: int, text: str = "", /) -> None:  # noqa: ARG002
        """So much is done."""
        self._told()

    def end(self, name: str, /) -> None:
        """Work is over."""
        self._told()
        self.ends[name] = round(self._last - self.start, 2)

    def _told(self) -> None:
        now = time.perf_counter()
        self.longest_silence = max(self.longest_silence, now - self._last)
        self._last = now


def make_clips(folder: Path, count: int) -> None:
    """Clips 0 to `count` with their captions; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"clip_{index}.mp4"
        if path.exists():
            continue
        rng = np.random.default_rng(index)
        colour, place, speed = rng.integers(40, 255, 3), rng.integers(0, 40, 2), rng.integers(-2, 3, 2)
        partial = path.with_suffix(".part")
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"  # type: ignore[attr-defined]
            for frame in range(FRAMES):
                pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
                x, y = (place + frame * speed) % 48
                pixels[y : y + 16, x : x + 16] = colour
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))  # type: ignore[attr-defined]
            container.mux(stream.encode())  # type: ignore[attr-defined]
        path.with_suffix(".txt").write_text(f"number {index}: a square of {colour.tolist()} moves by {speed.tolist()}")
        partial.rename(path)


def tables(dataset: Path, work: Path) -> dict:
    """A recipe as it is written down; its models lie in the work folder."""
    models = work / "models"
    return {
        "name": "many",
        "dataset": {"folder": str(dataset), "width": SIDE, "height": SIDE, "num_frames": USED},
        "models": {
            "high": str(models / "diffusion_models" / "wan_mini_high_noise.safetensors"),
            "vae": str(models / "vae" / "wan_mini_vae.safetensors"),
            "text_encoder": str(models / "text_encoders" / "wan_mini_umt5.safetensors"),
        },
        "work": str(work),
        "device": "cpu",
        "epochs": 1,
    }


def prepare(dataset: Path, work: Path) -> dict:
    """Do all that comes before training, in this process, and say what it took."""
    recipe = recipe_from_tables(tables(dataset, work), work)
    watch, cpu = Watch(), time.process_time()
    planned = prepare_recipe(recipe, ["cpu"], watch)
    seconds = time.perf_counter() - watch.start
    count = len(planned[0].job.data.samples)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "clips": count,
        "seconds": round(seconds, 2),
        "seconds_per_1000": round(seconds / count * 1000, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "ended_after_s": watch.ends,
        "longest_silence_s": round(max(watch.longest_silence, time.perf_counter() - watch._last), 2),
        "peak_mb": round(peak / 1024),
    }


def main() -> None:
    """Make, measure, and add rows to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000])
    parser.add_argument("--folder", type=Path, required=True, help="for clips, caches and runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prepare", type=Path, nargs=2, metavar=("DATASET", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(*options.prepare)))
        return
    rows = []
    for count in options.clips:
        dataset, work = options.folder / f"clips_{count}", options.folder / f"work_{count}_{time.time_ns()}"
        make_clips(dataset, count)
        write_family(work / "models")
        save_file(wan_vae(1), work / "models" / "vae" / "wan_mini_vae.safetensors")  # the least work, of random weights
        for start in ("first", "second"):
            command = [sys.executable, __file__, "--folder", str(options.folder), "--prepare", str(dataset), str(work)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"start": start, **json.loads(done.stdout.splitlines()[-1])})
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        told = {
            "command": " ".join(["python", *sys.argv]),
            "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
            "machine": f"{platform.system()}, {platform.machine()}, CPU",
            "rows": rows,
        }
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
