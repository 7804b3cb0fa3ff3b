"""What caching costs beyond the encoders: bare VAE time against the cache's, one after the other and with reading ahead.

python benchmarks/caching.py --clip 832x480x33 --source 1280x720 --count 16 --vae wan2.1 --text xxl-quarter --device cuda \
    --out benchmarks/results/caching-h100.json

Clips are drawn, weights are random: the time depends on neither. "xxl-quarter" has the widths of umT5-XXL and 6 of its 24
layers. Encoders are those that run without ComfyUI. Each time is the best of --rounds.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks.material import Clip  # noqa: E402
from wan_train.core.data.ahead import AHEAD  # noqa: E402
from wan_train.core.data.decode import read_frames  # noqa: E402
from wan_train.core.data.encode import cache_latents, cache_text  # noqa: E402
from wan_train.core.data.scan import scan_folder  # noqa: E402
from wan_train.core.data.store import Store  # noqa: E402
from wan_train.core.data.types import Dataset  # noqa: E402
from wan_train.core.encoders.text import Umt5TextEncoder, load_text_encoder  # noqa: E402
from wan_train.core.encoders.vae import WanVideoEncoder, load_video_encoder  # noqa: E402
from wan_train.core.settings.dataset import DatasetOptions  # noqa: E402
from wan_train.tools.miniature import TextSize, umt5, wan_vae  # noqa: E402

VAES = {"miniature": 8, "wan2.1": 96}  # base widths
TEXTS = {
    "miniature": TextSize(),
    "xxl-quarter": TextSize(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=6),
}
FPS = 16


def draw_clip(path: Path, width: int, height: int, frames: int, seed: int) -> None:
    """A picture of soft noise that drifts, as h264 in an mp4 file."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            moved = np.ascontiguousarray(np.roll(picture, (index, 3 * index), (0, 1)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


def draw_dataset(folder: Path, clip: Clip, source: tuple[int, int], count: int) -> Dataset:
    """A scanned folder of `count` clips of the size `source`, to be encoded at that of `clip`."""
    folder.mkdir()
    for index in range(count):
        draw_clip(folder / f"{index:03d}.mp4", *source, clip.frames, index)
    options = DatasetOptions(
        width=clip.width, height=clip.height, num_frames=clip.frames, fps=FPS, aspect_buckets=False, default_caption="x"
    )
    return scan_folder(folder, options)


def measure_latents(
    dataset: Dataset, encoder: WanVideoEncoder, work: Path, *, ahead: int, rounds: int
) -> dict[str, float]:
    """Seconds for the whole dataset: of the encoder alone, and of the cache."""
    pixels = [read_frames(sample) for sample in dataset.samples]
    encoder.encode(pixels[0])  # whatever is set up at the first time

    def bare(_: Path) -> None:
        for frames in pixels:
            encoder.encode(frames)

    def cached(folder: Path, ahead: int) -> None:
        cache_latents(dataset, encoder, Store(folder), ahead=ahead)

    seconds = {
        "encoder_s": best_time(bare, work, rounds),
        "sequential_s": best_time(lambda folder: cached(folder, 0), work, rounds),
        "ahead_s": best_time(lambda folder: cached(folder, ahead), work, rounds),
    }
    return seconds | {
        "sequential_ratio": seconds["sequential_s"] / seconds["encoder_s"],
        "ahead_ratio": seconds["ahead_s"] / seconds["encoder_s"],
    }


def measure_text(captions: list[str], encoder: Umt5TextEncoder, work: Path, rounds: int) -> dict[str, float]:
    """Seconds for all captions: one at a time, several at once, and of the cache; and how far the values differ."""
    encoder.encode(captions[0])
    alone = [encoder.encode(caption)[0] for caption in captions]
    together = [context for context, _ in encoder.encode_batch(captions)]
    seconds = {
        "single_s": best_time(lambda _: [encoder.encode(caption) for caption in captions], work, rounds),
        "batched_s": best_time(lambda _: encoder.encode_batch(captions), work, rounds),
        "cache_s": best_time(lambda folder: cache_text(captions, encoder, Store(folder)), work, rounds),
    }
    pairs = zip(alone, together, strict=True)
    return seconds | {
        "speed_up": seconds["single_s"] / seconds["batched_s"],
        "difference": max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs),  # of the largest value
    }


def best_time(act: Callable[[Path], object], work: Path, rounds: int) -> float:
    """Seconds of the fastest of several calls, each with an empty folder."""
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            start = time.perf_counter()
            act(Path(folder))
            times.append(time.perf_counter() - start)
    return min(times)


def random_captions(count: int) -> list[str]:
    """Captions of 60 to 400 characters, which are tokens here."""
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghij ", k=draw.randint(60, 400))) for _ in range(count)]


def load_encoders(options: argparse.Namespace, work: Path) -> tuple[WanVideoEncoder, Umt5TextEncoder]:
    """Random weights in ComfyUI's files, loaded as a headless run does."""
    save_file(wan_vae(VAES[options.vae]), work / "vae.safetensors")
    state = umt5(TEXTS[options.text])
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(half, work / "umt5.safetensors")
    return (
        load_video_encoder(work / "vae.safetensors", options.device),
        load_text_encoder(work / "umt5.safetensors", options.device),
    )


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Clip.parse, default=Clip.parse("832x480x33"), help="size that is encoded")
    parser.add_argument("--source", help="WIDTHxHEIGHT of the files; default: that of the clip")
    parser.add_argument("--count", type=int, default=16, help="number of clips")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--vae", choices=VAES, default="miniature")
    parser.add_argument("--text", choices=TEXTS, default="miniature")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ahead", type=int, default=AHEAD, help="samples read ahead")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="JSON; replaced")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write."""
    options = read_options(arguments)
    width, height = map(int, options.source.split("x")) if options.source else (options.clip.width, options.clip.height)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dataset = draw_dataset(work / "clips", options.clip, (width, height), options.count)
        video, text = load_encoders(options, work)
        latents = measure_latents(dataset, video, work, ahead=options.ahead, rounds=options.rounds)
        captions = measure_text(random_captions(options.captions), text, work, options.rounds)
    device = torch.cuda.get_device_name(0) if "cuda" in options.device else f"CPU, {platform.machine()}"
    report = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": device,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "command": "python benchmarks/caching.py " + " ".join(arguments or sys.argv[1:]),
        "latents": {"dtype": str(video.dtype), **{name: round(value, 4) for name, value in latents.items()}},
        "text": {name: float(f"{value:.4g}") for name, value in captions.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
