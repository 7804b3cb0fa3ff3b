"""How much a LoRA of ours learns on the nano family, and one of musubi-tuner's at equal steps.

    python benchmarks/musubi_nano.py --musubi ~/musubi-tuner --work FOLDER --out nano/curves/peer.csv
    python benchmarks/musubi_nano.py --musubi ~/musubi-tuner --work FOLDER --out nano/curves/peer.csv --processes 9
    python benchmarks/musubi_nano.py --out nano/curves/peer.csv --table

Rows are kept as they are made; a command that is given again makes what is missing. With --processes each concept, seed and
trainer has a process of its own, so many at a time. Both trainers have the same device. --table also writes nano/README.md.

musubi-tuner runs its own unmodified script (musubi_nano_launch.py changes the sizes of its model alone), on our cached latents
and texts. Both have rank and alpha 16, AdamW, learning rate 1e-3, batches of 4, the timestep law shift 5 cut to each expert's
side of 0.875, the same base in the same precision. The bench's exam asks every LoRA through our sampler.
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if "wan_train" not in sys.modules:
    import wantrain

    wantrain.load_pack()

from wan_train.benchmarks.musubi import ENVIRONMENT, run_logged, version
from wan_train.core.errors import ConfigError
from wan_train.core.facts import BOUNDARY_T2V_A14B, NUM_TIMESTEPS
from wan_train.core.settings.job import DataSpec, stage_window
from wan_train.core.train.batches import load_tensor
from wan_train.tools.nano import tables, world
from wan_train.tools.nano.concepts import CONCEPTS, Concept
from wan_train.tools.nano.evaluate import Family
from wan_train.tools.nano.exam import Answers, Exam, answer, grade
from wan_train.tools.nano.failure import error_line, why_failed
from wan_train.tools.nano.family import STAGES, T2V, Files
from wan_train.tools.nano.lessons import teach, with_lora
from wan_train.tools.nano.settings import Settings
from wan_train.tools.nano.side_by_side import ONE_THREAD
from wan_train.tools.nano.tables import peer_table
from wan_train.tools.nano.workshop import Workshop

COLUMNS = (
    "concept", "seed", "trainer", "steps", "learnt", "leaked", "kept", "kept_base", "seconds", "device", "precision", "version",
)  # fmt: skip
CONCEPTS_ASKED = ("dive", "barred", "star")
TASK, SHIFT = "t2v-A14B", 5.0
BATCH, RATE, RANK = 4, 1e-3, 16
TRAINERS = ("ours", "musubi-tuner")


def settings_of(seed: int, steps: int, every: int) -> Settings:
    """Ours, with what the peer is given on its command line."""
    usual = Settings()
    return replace(
        usual,
        clips=16,
        others=8,
        adapter=replace(usual.adapter, rank=RANK, alpha=float(RANK)),
        optimizer=replace(usual.optimizer, name="adamw", learning_rate=RATE, weight_decay=0.01),
        timesteps=replace(usual.timesteps, sampling="shift", shift=SHIFT),
        loop=replace(usual.loop, steps=steps, batch_size=BATCH, seed=seed, checkpoint_every=every, keep_last=steps),
    )


def command(
    checkout: Path, stage: str, *, dit: Path, data: Path, out: Path, seed: int, steps: int, every: int
) -> list[str]:
    """The peer's training of one expert."""
    launcher = Path(__file__).with_name("musubi_nano_launch.py")
    sizes = {name: getattr(T2V, name) for name in ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim")}
    low, high = (round(sigma * NUM_TIMESTEPS) for sigma in stage_window(stage, BOUNDARY_T2V_A14B))
    told = {
        "--task": TASK,
        "--dit": dit,
        "--dataset_config": data,
        "--network_module": "networks.lora_wan",
        "--network_dim": RANK,
        "--network_alpha": RANK,
        "--optimizer_type": "adamw",
        "--learning_rate": RATE,
        "--timestep_sampling": "shift",
        "--discrete_flow_shift": SHIFT,
        "--min_timestep": low,
        "--max_timestep": high,
        "--max_train_steps": steps,
        "--save_every_n_steps": every,
        "--seed": seed,
        "--mixed_precision": precision()[0],
        "--output_dir": out,
        "--output_name": stage,
        "--max_data_loader_n_workers": 0,
    }
    flags = ["--sdpa", "--preserve_distribution_shape"]
    return [
        *(sys.executable, str(launcher), str(checkout), json.dumps(sizes)),
        *(str(part) for pair in told.items() for part in pair),
        *flags,
    ]


def precision() -> tuple[str, torch.dtype]:
    """What both train in, by the peer's name: that of ours where nothing is chosen."""
    return ("bf16", torch.bfloat16) if torch.cuda.is_available() else ("no", torch.float32)


def write_data(folder: Path, data: DataSpec) -> Path:
    """Our cached latents and texts in the peer's form (its dataset/cache_io.py), and the file that names them."""
    for part in ("source", "cache"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    name, dtype = precision()[0], precision()[1]
    word = {"bf16": "bfloat16", "no": "float32"}[name]
    size = f"{world.SIZE:04d}x{world.SIZE:04d}"
    for number, sample in enumerate(data.samples):
        latents = load_tensor(sample.latents_path, "latents", sample.name).to(dtype)
        context = load_tensor(sample.text_path, "context", sample.name).to(dtype)
        _, frames, height, width = latents.shape
        meta = {"architecture": "wan", "width": str(world.SIZE), "height": str(world.SIZE), "format_version": "1.0.1"}
        item = f"item{number:03d}"
        save_file(
            {f"latents_{frames}x{height}x{width}_{word}": latents},
            folder / "cache" / f"{item}_00000-{world.NUM_FRAMES:03d}_{size}_wan.safetensors",
            metadata={**meta, "frame_count": str(world.NUM_FRAMES)},
        )
        text_meta = {"architecture": "wan", "caption1": sample.caption, "format_version": "1.0.1"}
        save_file({f"varlen_t5_{word}": context}, folder / "cache" / f"{item}_wan_te.safetensors", metadata=text_meta)
    path = folder / "data.toml"
    path.write_text(
        f'[general]\ncaption_extension = ".txt"\nbatch_size = {BATCH}\nenable_bucket = false\n'
        f"[[datasets]]\nresolution = [{world.SIZE}, {world.SIZE}]\nnum_repeats = 1\n"
        f"cache_directory = {json.dumps(str(folder / 'cache'))}\nvideo_directory = {json.dumps(str(folder / 'source'))}\n"
        f'target_frames = [{world.NUM_FRAMES}]\nframe_extraction = "head"\n',
        encoding="utf-8",
    )
    return path


def by_ours(workshop: Workshop, concept: Concept, settings: Settings) -> tuple[dict[int, dict[str, Path]], float]:
    """The LoRAs of both experts by the number of steps, and the seconds of the steps."""
    lessons = teach(concept, settings, workshop)
    steps = settings.loop.steps
    found = {step: {stage: lessons[stage].snapshots[step] for stage in STAGES} for step in measured(settings)[:-1]}
    found[steps] = {stage: lessons[stage].lora for stage in STAGES}
    return found, sum(lesson.seconds for lesson in lessons.values())


def by_musubi(
    checkout: Path, packages: Path | None, workshop: Workshop, concept: Concept, settings: Settings
) -> tuple[dict[int, dict[str, Path]], float]:
    """The same of the peer; its seconds are those of its process."""
    folder = workshop.folder.absolute() / "musubi" / f"{concept.name}-{settings.loop.seed}"
    data = write_data(folder, workshop.data(concept, settings))
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    if packages:
        environment["PYTHONPATH"] = str(packages.absolute())
    loop, seconds = settings.loop, []

    def train(stage: str) -> Path:
        dit, out = folder / f"{stage}.safetensors", folder / f"out-{stage}"
        tensors = load_file(workshop.files.dit(stage))
        save_file({name: tensor.to(precision()[1]) for name, tensor in tensors.items()}, dit)
        told = command(
            checkout, stage, dit=dit, data=data, out=out, seed=loop.seed, steps=loop.steps, every=loop.checkpoint_every
        )
        out.mkdir(exist_ok=True)
        start = time.perf_counter()
        if not (out / f"{stage}.safetensors").exists():
            run_logged(f"musubi-tuner, {stage}", told, environment, out, 3600)
        seconds.append(time.perf_counter() - start)
        return out

    with ThreadPoolExecutor(len(STAGES)) as pool:  # side by side
        outs = dict(zip(STAGES, pool.map(train, STAGES), strict=True))
    found: dict[int, dict[str, Path]] = {step: {} for step in measured(settings)}
    for step, (stage, out) in product(found, outs.items()):
        own = out / (f"{stage}.safetensors" if step == loop.steps else f"{stage}-step{step:08d}.safetensors")
        if not own.exists():
            log = out / "peer.log"
            said = error_line(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ""
            raise SystemExit(f"musubi-tuner wrote no {own.name}: {said or 'it said nothing'} (all of it: {log})")
        found[step][stage] = own
    return found, sum(seconds)


def measured(settings: Settings) -> list[int]:
    """The numbers of steps after which a LoRA is asked."""
    return [
        *range(settings.loop.checkpoint_every, settings.loop.steps, settings.loop.checkpoint_every),
        settings.loop.steps,
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows that are there. ConfigError for a file with other columns."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path} has other columns than this version writes: choose another file for --out.")
        return [row for row in reader if None not in row and None not in row.values()]  # not what a crash cut off


def add_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Append; they are in the file when this returns."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if is_new:
        writer.writeheader()
    writer.writerows(rows)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(text.getvalue())


def name_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What a row is of, its device too: figures of a CPU do not stand for those of a GPU."""
    return tuple(str(row[name]) for name in ("concept", "seed", "trainer", "steps", "device"))


Lesson = tuple[str, int, str]  # concept, seed, trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are not there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table alone")
    parser.add_argument("--musubi", type=Path, help="a checkout of musubi-tuner")
    parser.add_argument("--packages", type=Path, help="a folder of packages that it alone sees")
    parser.add_argument("--work", type=Path, help="folder for data, caches and runs")
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=list(CONCEPTS_ASKED), metavar="CONCEPT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--measure-every", type=int, default=125)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=TRAINERS)
    parser.add_argument("--processes", type=int, default=0, help="trainings side by side; 0: one after another, here")
    parser.add_argument("--stop", type=float, default=1e9, help="seconds after which no training begins")
    options = parser.parse_args(arguments)
    if not options.table:
        if not (options.musubi and options.work):
            parser.error("--musubi and --work are needed, or --table")
        compare(options)
    elif (Files().root / "curves" / "peer.csv").resolve() == options.out.resolve():
        tables.main([])
    print(peer_table(read_rows(options.out)))


def compare(options: argparse.Namespace) -> None:
    """Teach by both, ask after every so many steps; the trainers of one concept and seed one after the other."""
    end = time.perf_counter() + options.stop
    lessons = missing_lessons(options, read_rows(options.out))
    print(f"{len(lessons)} trainings are to be made.", flush=True)
    if options.processes:
        side_by_side(options, lessons, end)
        return
    workshop = Workshop(files=Files(options.family), folder=options.work, device=device_kind())
    base = Family.load(workshop.files, workshop.device) if lessons else None
    off: dict[str, Answers] = {}
    for name, seed, trainer in lessons:
        if time.perf_counter() > end:
            return
        assert base is not None
        concept, exam, settings = CONCEPTS[name], Exam.of(CONCEPTS[name], options.prompts), settings_from(options, seed)
        if trainer == "ours":
            loras, seconds = by_ours(workshop, concept, settings)
        else:
            loras, seconds = by_musubi(options.musubi, options.packages, workshop, concept, settings)
        if name not in off:
            off[name] = answer(base, exam)
        there = {name_of(row) for row in read_rows(options.out)}
        for step in measured(settings):
            told = {"concept": name, "seed": seed, "trainer": trainer, "steps": step, "device": device_name()}
            if name_of(told) in there:
                continue
            score = grade(
                exam, off=off[name], on=answer(with_lora(base, loras[step]["high"], loras[step]["low"]), exam)
            )
            shares = {each: f"{getattr(score, each):.4g}" for each in ("learnt", "leaked", "kept", "kept_base")}
            row = {
                **told, **shares, "seconds": f"{seconds:.1f}", "precision": str(precision()[1]).removeprefix("torch."),
                "version": "" if trainer == "ours" else version(options.musubi),
            }  # fmt: skip
            add_rows(options.out, [row])
            print(*row.values(), flush=True)


def settings_from(options: argparse.Namespace, seed: int) -> Settings:
    """Those of the command line."""
    return settings_of(seed, options.steps, options.measure_every)


def missing_lessons(options: argparse.Namespace, rows: Sequence[Mapping[str, str]]) -> list[Lesson]:
    """What lacks a row: seed by seed, of each concept by each trainer, so that pairs are whole as early as may be."""
    there = {name_of(row) for row in rows}
    found: list[Lesson] = []
    for seed, concept, trainer in product(options.seeds, options.concepts, options.trainers):
        steps = measured(settings_from(options, seed))
        if any((concept, str(seed), trainer, str(step), device_name()) not in there for step in steps):
            found.append((concept, seed, trainer))
    return found


def side_by_side(options: argparse.Namespace, lessons: Sequence[Lesson], end: float) -> None:
    """Each in a process of its own; the rows of each go into the one file when it ends, also of one that failed."""
    work, one_at_a_time = options.work.absolute(), threading.Lock()
    work.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(files=Files(options.family), folder=work, device=device_kind())
    for name, seed in dict.fromkeys((name, seed) for name, seed, _ in lessons):  # once, and not by two at a time
        workshop.data(CONCEPTS[name], settings_from(options, seed))

    def one(lesson: Lesson) -> None:
        name, seed, trainer = lesson
        if time.perf_counter() > end:
            return
        own = work / f"rows-{name}-{seed}-{trainer}.csv"
        told = {
            "--out": own, "--work": work, "--musubi": options.musubi.absolute(), "--family": options.family.absolute(),
            "--concepts": name, "--seeds": seed, "--trainers": trainer, "--steps": options.steps,
            "--measure-every": options.measure_every, "--prompts": options.prompts,
        }  # fmt: skip
        if options.packages:
            told["--packages"] = options.packages.absolute()
        log = work / f"log-{name}-{seed}-{trainer}.txt"
        with log.open("w", encoding="utf-8") as file:
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                *(str(part) for pair in told.items() for part in pair),
            ]
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ONE_THREAD}, check=False
            ).returncode
        with one_at_a_time:
            there = {name_of(row) for row in read_rows(options.out)}
            add_rows(options.out, [row for row in read_rows(own) if name_of(row) not in there])
        print(
            f"{name}, seed {seed}, {trainer}: {'done' if code == 0 else f'failed: {why_failed(code, log)}'}", flush=True
        )

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(one, lessons))


def device_kind() -> str:
    """Both trainers' device, as PyTorch calls it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """Of the table."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
