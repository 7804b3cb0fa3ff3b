"""From Run in the real ComfyUI to the finished pair of LoRAs, by the clock: the shipped template with models of true size.

python benchmarks/host_time_to_lora.py --host ~/comfy/ComfyUI --steps 100 --out benchmarks/results/time-to-lora-host-h200.json

A folder of 20 pictures in five sizes with captions, both experts of 14B in fp8, the VAE and umT5-XXL, all with random weights.
Nothing is kept from before: the pictures are encoded, the captions too, and kernels are compiled. All settings are those of
the template, but for the sizes and the steps. The row says when each part began, what the nodes told, what the plans had
promised, and when the files were there. Models are written into TMPDIR, 40 GB: a folder in main memory is best. With --small a
dry run on a CPU with miniatures.
"""

import argparse
import json
import math
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import speed  # noqa: E402
from wan_train.benchmarks.host_material import ON_CPU, Json, node_of, usual, write_models  # noqa: E402
from wan_train.benchmarks.lora_clock import by_size, promised  # noqa: E402
from wan_train.benchmarks.material import MODELS, write_checkpoint, write_random  # noqa: E402
from wan_train.core.train.events import EventReader  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402
from wan_train.tests.host_server import Host, start_host  # noqa: E402
from wan_train.tools.mini_vae import wan_vae  # noqa: E402
from wan_train.tools.miniature import character_tokenizer  # noqa: E402
from wan_train.tools.server import failure  # noqa: E402

EXPERTS = ("high", "low")
# Pictures as people have them, larger than what is trained on; each aspect ratio is a bucket.
SIZES = {"square": (1280, 1280), "wide": (1620, 1002), "tall": (1002, 1620), "4:3": (1472, 1108), "3:4": (1108, 1472)}
OF_EACH = 4
LINES_EVERY_S = 1.0  # at most so often a line of a node goes into the row
VAE, TEXT = "random_vae.safetensors", "random_umt5_xxl.safetensors"
XXL = {
    "vocabulary": 256384,
    "width": 4096,
    "inner": 10240,
    "heads": 64,
    "layers": 24,
}  # umt5_config_xxl.json of ComfyUI


def write_text_encoder(path: Path) -> None:
    """A random umT5-XXL in bf16, as ComfyUI's own loader takes it."""
    width, inner = XXL["width"], XXL["inner"]
    shapes = {"shared.weight": torch.Size((XXL["vocabulary"], width)), "encoder.final_layer_norm.weight": (width,)}
    for number in range(XXL["layers"]):
        block = f"encoder.block.{number}.layer"
        shapes |= {f"{block}.0.SelfAttention.{name}.weight": (width, width) for name in "qkvo"}
        shapes[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = (32, XXL["heads"])
        shapes |= {f"{block}.1.DenseReluDense.{name}.weight": (inner, width) for name in ("wi_0", "wi_1")}
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (width, inner)
        shapes |= {f"{block}.{part}.layer_norm.weight": (width,) for part in (0, 1)}
    tokenizer = torch.frombuffer(bytearray(character_tokenizer()), dtype=torch.uint8)
    dtypes = dict.fromkeys(shapes, torch.bfloat16) | {"spiece_model": torch.uint8}
    sizes = {name: torch.Size(shape) for name, shape in shapes.items()} | {"spiece_model": tokenizer.shape}
    write_random(path, sizes, dtypes, {"spiece_model": tokenizer})


def write_large(models: Path) -> dict[str, str]:
    """All models of true size below ComfyUI's folder; file names by what they are."""
    for name in ("diffusion_models", "vae", "text_encoders", "loras"):
        (models / name).mkdir(parents=True, exist_ok=True)
    names = {}
    for expert in EXPERTS:
        names[expert] = f"random_{expert}_noise_14B_fp8.safetensors"
        file = models / "diffusion_models" / names[expert]
        speed.apart(f"writing {file.name}", write_checkpoint, file, MODELS["14b"], torch.float8_e4m3fn)
    speed.apart(f"writing {TEXT}", write_text_encoder, models / "text_encoders" / TEXT)
    save_file({name: tensor.bfloat16() for name, tensor in wan_vae(96).items()}, models / "vae" / VAE)
    return names | {"vae": VAE, "text": TEXT}


def write_small(models: Path) -> dict[str, str]:
    """The same with miniatures."""
    write_models(models, ON_CPU)
    names = {expert: f"small_{expert}_noise.safetensors" for expert in EXPERTS}
    return names | {"vae": "wan_mini_vae.safetensors", "text": "wan_mini_umt5.safetensors"}


def draw_pictures(folder: Path, scale: float) -> None:
    """Soft noise, each picture with a caption of 60 to 400 characters."""
    folder.mkdir(parents=True)
    draw, noise = random.Random(0), np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        for number in range(OF_EACH):
            size = round(width * scale), round(height * scale)
            cells = noise.integers(0, 256, (math.ceil(size[1] / 16), math.ceil(size[0] / 16), 3), dtype=np.uint8)
            path = folder / f"{name.replace(':', 'x')}_{number}.jpg"
            Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
            words = "".join(draw.choices("abcdefghij ", k=draw.randint(60, 400)))
            path.with_suffix(".txt").write_text(words, encoding="utf-8")


def prompt_of(host: Host, names: Mapping[str, str], steps: int, *, small: bool) -> Json:
    """The template to the pair of LoRAs, with these files."""
    prompt = usual(host.object_info(), ON_CPU, "person", steps, folder="input/pictures", seed=42)
    prompt = {
        name: node for name, node in prompt.items() if name not in ("preview", "video", "high_model", "low_model")
    }
    side = 64 if small else 960
    prompt["data"]["inputs"] |= {"width": side, "height": side, "num_frames": 1}
    prompt["vae"]["inputs"]["vae_name"] = names["vae"]
    if not small:
        prompt["clip"] = node_of("CLIPLoader", clip_name=names["text"], type="wan", device="default")
    for expert in EXPERTS:
        prompt[f"{expert}_dit"]["inputs"]["model_name"] = names[expert]
    return prompt


def measure(host: Host, prompt: Json, steps: int, limit: float) -> dict[str, Any]:
    """Run it, and what came when: seconds from Run on."""
    seen, start, clock = len(host.events), time.monotonic(), time.time()
    entry = host.run(prompt, limit)
    row: dict[str, Any] = {"steps": steps, "ended_s": round(time.monotonic() - start, 1)}
    row["problem"] = failure(entry, prompt)
    loras = sorted((host.base / "models" / "loras").glob("*.safetensors"))
    row["loras"] = {path.name: round(path.stat().st_mtime - clock, 1) for path in loras}
    row["pair_s"] = max(row["loras"].values(), default=None)
    row["nodes"] = [
        [round(event.time - start, 2), event.data["node"]]
        for event in host.events[seen:]
        if event.type == "executing" and event.data.get("node")
    ]
    row["told"] = [[round(at - start, 1), *told] for at, *told in lines_told(host, seen)]
    runs = [path for path in (host.base / "output" / "wan_train" / "runs").iterdir() if path.is_dir()]
    row["runs"] = [run_row(folder, clock) for folder in sorted(runs)]
    return row


def lines_told(host: Host, seen: int) -> Iterator[tuple[float, str, str]]:
    """When which node showed which line, at most one in LINES_EVERY_S."""
    last: dict[str, tuple[float, str]] = {}
    for event in host.events[seen:]:
        if event.type != "wan_train.update" or not event.data.get("line"):
            continue
        node, line = event.data["node_id"], event.data["line"]
        at, before = last.get(node, (-LINES_EVERY_S, ""))
        if line != before and event.time - at >= LINES_EVERY_S:
            last[node] = event.time, line
            yield event.time, node, line


def run_row(folder: Path, clock: float) -> dict[str, Any]:
    """What a run's diary says."""
    events = EventReader(RunFolder(folder).events_path).read()
    steps = [event for event in events if event["event"] == "step"]
    plans = [event for event in events if event["event"] == "plan"]
    when = [[round(event["time"] - clock, 2), event["event"]] for event in events if event["event"] != "step"]
    row: dict[str, Any] = {"run": folder.name, "done_steps": len(steps), "when": when}
    if not steps:
        return row
    _, steady = by_size(steps, ["all sizes"] * steps[-1]["step"])
    if plans:  # a CPU makes none
        row |= {**promised(plans[0], len(steps)), "plan": plans[0]["message"]}
    return row | {
        "first_step_s": round(steps[0]["time"] - clock, 2),
        "last_step_s": round(steps[-1]["time"] - clock, 2),
        "step_s": steady.get("all sizes"),
        "slowest_steps_s": sorted((round(event["seconds"], 2) for event in steps), reverse=True)[:6],
        "peak_reserved_gb": max((event.get("reserved_gib", 0.0) for event in steps), default=0.0),
        "shortages": sum("step" in plan for plan in plans),
        "warnings": [event["message"] for event in events if event["event"] == "warning"],
    }


def main() -> int:
    """The exit code: 1 if it came to no pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder")
    parser.add_argument("--steps", type=int, default=100, help="of each expert")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds that it may take from Run on")
    parser.add_argument("--small", action="store_true", help="miniatures on a CPU")
    parser.add_argument("--page", type=Path, help="in the place of ComfyUI's page, where its package is not installed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; ComfyUI's log is written beside it")
    options = parser.parse_args()
    write: Callable[[Path], dict[str, str]] = write_small if options.small else write_large
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        names = write(base / "models")
        draw_pictures(base / "input" / "pictures", 0.08 if options.small else 1.0)
        more = () if options.page is None else ("--front-end-root", str(options.page.resolve()))
        row: dict[str, Any] = {}
        try:
            with start_host(options.host, base, packs=[PACK], extra_args=more, on_cpu=options.small) as host:
                prompt = prompt_of(host, names, options.steps, small=options.small)
                row = measure(host, prompt, options.steps, options.limit)
        finally:
            log = base / "server.log"
            options.out.with_suffix(".log").write_text(log.read_text(errors="replace") if log.exists() else "")
    report = {
        "device": f"CPU, {platform.machine()}" if options.small else speed.device_name(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": "python benchmarks/host_time_to_lora.py " + shlex.join(sys.argv[1:]),
        "versions": speed.versions(),
        "row": row,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in row.items() if name not in ("told", "nodes")}, indent=1))
    return int(not row or row["problem"] is not None)


if __name__ == "__main__":
    sys.exit(main())
