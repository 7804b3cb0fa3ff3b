"""Hostile jobs, run folders, LoRAs and recipes against the commands that take them.

Whatever they say: nothing is written but where the user said (a run's own folder, the work or output folder), no command
hangs, and every refusal is a sentence. A snapshot of everything else, a decoy of the user's home included, is compared.
"""

import copy
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from wan_train.core.serial import to_dict
from wan_train.tests.campaigns.campaign import Campaign, Report
from wan_train.tests.campaigns.jobs_made import (
    FLOATS,
    HUGE,
    INTEGERS,
    Stage,
    as_text,
    plant,
    set_up,
    spoil,
    write_lora_file,
)

SERVER = Path(__file__).with_name("jobs_server.py")
REFUSAL_S = 10.0  # of a processor: most that a refusal may take
WORK_S = 600.0  # a training of two steps, or a preview, on a machine that is busy with other things
NAMED_EXITS = (0, 1, 2, 3)  # done, a sentence, a wrong argument, stopped


class Try:
    """One command line over what a stranger sent; `allowed`: where it may write."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.arguments: list[str] = []
        self.allowed: list[Path] = []
        self.told = ""  # what is wrong with it


def attack(tries: int, seed: int, place: Path) -> Report:
    """Make the tries; see the module."""
    report, counts = Report(), Counter[str]()
    if not hasattr(os, "mkfifo"):
        report.facts["left out"] = "pipes, sockets and forks are not there on Windows"
        report.tries = tries
        return report
    stage = set_up(place)
    environment = {"HOME": str(stage.home), "TMPDIR": str(place / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        slowest = 0.0
        for number in range(tries):
            chance = random.Random(seed * 1_000_003 + number)
            kind, make = KINDS[number % len(KINDS)]
            one = Try(place / f"try-{number}")
            one.folder.mkdir()
            make(one, chance, stage)
            before = snapshot(place, one.allowed)
            code, seconds, said = _run(server, one, place)
            name = f"try {number} of seed {seed} ({kind}; {one.told})"
            _judge(report, name, code, said, seconds)
            changed = sorted(_changes(before, snapshot(place, one.allowed)))
            report.check(not changed, f"{name}: outside of its folder, this changed: {', '.join(changed[:3])}")
            counts[f"{kind}: {'done' if code == 0 else 'refused'}"] += 1
            slowest = max(slowest, seconds if code == 1 and "Reading the model" not in said else 0.0)
        report.tries = tries
    report.facts.update(sorted(counts.items()))
    report.facts["slowest refusal, seconds of a processor"] = round(slowest, 2)
    return report


def _run(server: "subprocess.Popen[str]", one: Try, place: Path) -> tuple[int | str, float, str]:
    output = place / "tmp" / "output.txt"
    order = {"arguments": one.arguments, "folder": str(one.folder), "output": str(output), "seconds": WORK_S}
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    code, seconds = json.loads(server.stdout.readline())
    said = output.read_text(encoding="utf-8", errors="replace")
    for log in one.folder.rglob("worker.log"):
        if stat.S_ISREG(log.lstat().st_mode):
            said += log.read_text(encoding="utf-8", errors="replace")
    return code, seconds, said


def _judge(report: Report, name: str, code: int | str, said: str, seconds: float) -> None:
    if code == "hang":
        report.failures.append(f"{name}: it hung for {WORK_S:.0f} s, and had said: {said[-200:]}")
        return
    report.check(code in NAMED_EXITS, f"{name}: it ended with {code}: {said[-1500:]}")
    report.check(
        "Traceback (most recent call last)" not in said, f"{name}: an error without a sentence: {said[-1500:]}"
    )
    report.check(code != 1 or "ERROR" in said, f"{name}: it was refused without a word")
    report.check("\x1b" not in said, f"{name}: what a stranger wrote reached the terminal as a command")
    has_begun = "Reading the model" in said
    report.check(has_begun or code != 1 or seconds <= REFUSAL_S, f"{name}: the refusal took {seconds:.1f} s")
    is_too_late = has_begun and code == 1 and "not finite" not in said  # which nobody can know before
    report.check(not is_too_late, f"{name}: it was refused when the work had begun: {said[-500:]}")


def snapshot(place: Path, allowed: list[Path]) -> dict[str, str]:
    """What lies in `place`, but for its temporary folder and `allowed`."""
    skipped = {str(place / "tmp"), *map(str, allowed)}
    found: dict[str, str] = {}
    waiting = [str(place)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.path in skipped:
                    continue
                found[entry.path] = _fingerprint(entry)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return found


def _fingerprint(entry: "os.DirEntry[str]") -> str:
    """Of a file: size, time and, if it is small, content; of others what they are."""
    status = entry.stat(follow_symlinks=False)
    if entry.is_symlink():
        return f"link to {os.readlink(entry.path)}"  # noqa: PTH115 - of a DirEntry
    if not stat.S_ISREG(status.st_mode):
        return oct(status.st_mode)
    small = status.st_size < 1_000_000
    content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest() if small else ""
    return f"{status.st_size} {status.st_mtime_ns} {content}"


def _changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def _job(one: Try, chance: random.Random, stage: Stage) -> bytes:
    """A job that is spoilt in one or two places, or, once in ten, a good one."""
    data = copy.deepcopy(to_dict(stage.job))
    told = [] if chance.random() < 0.1 else [spoil(data, chance, stage) for _ in range(chance.choice((1, 1, 2)))]
    one.told = "; ".join(told) or "good"
    return as_text(data, chance) if told else json.dumps(data).encode()


def _run_folder(one: Try, chance: random.Random, stage: Stage) -> None:
    run = one.folder / "runs" / "received"
    run.mkdir(parents=True)
    (run / "job.json").write_bytes(_job(one, chance, stage))
    one.arguments = ["train", str(run if chance.random() < 0.7 else run / "job.json")]
    if chance.random() < 0.2:
        one.arguments.append("--follow-stdin")
    one.allowed = [run, one.folder / "cache"]


def _linked_folder(one: Try, chance: random.Random, stage: Stage) -> None:
    run = one.folder / "received"
    run.mkdir()
    (run / "job.json").write_text(json.dumps(to_dict(stage.job)), encoding="utf-8")
    one.told = "; ".join(plant(run, chance, stage) for _ in range(chance.choice((1, 1, 2))))
    one.arguments = ["train", str(run)]
    if chance.random() < 0.2:
        one.arguments.append("--follow-stdin")
    one.allowed = [run]


def _lora(one: Try, chance: random.Random, stage: Stage) -> None:
    path = one.folder / "received.safetensors"
    write_lora_file(path, _job(one, chance, stage).decode("utf-8", "replace"), stage.job)
    one.arguments = ["train", str(path)]
    one.allowed = [one.folder / "wan_train"]


def _job_file(one: Try, chance: random.Random, stage: Stage) -> None:
    path = one.folder / chance.choice(("received.json", "job.json.json", "x.JSON"))
    path.write_bytes(_job(one, chance, stage))
    one.arguments = ["train", str(path), "--work", str(one.folder / "work")]
    one.allowed = [one.folder / "work"]


def _recipe(one: Try, chance: random.Random, stage: Stage) -> None:
    data = copy.deepcopy(stage.recipe)
    data["work"] = "wan_train"
    told = [spoil(data, chance, stage) for _ in range(chance.choice((1, 2)))]
    for table, key in ((data, "work"), (data.get("lora"), "folder"), (data.get("dataset"), "folder")):
        named = table.get(key) if isinstance(table, dict) else None
        if isinstance(named, str) and key == "work":  # where the user says: here, in this folder
            table[key] = "wan_train"
        if isinstance(named, str) and named in (
            "/",
            ".",
            "..",
            "",
        ):  # all of a disk is no hostile folder, but a long read
            table[key] = str(stage.shared / "bad" / "folder")
    one.told = "; ".join(told)
    path = one.folder / "received.json"
    path.write_bytes(as_text(data, chance))
    one.arguments = [chance.choice(("train", "scan", "cache")), str(path)]
    one.allowed = [one.folder / "wan_train"]


def _merge(one: Try, chance: random.Random, stage: Stage) -> None:
    hostile = one.folder / "received.safetensors"
    write_lora_file(hostile, _job(one, chance, stage).decode("utf-8", "replace"), stage.job)
    first = chance.choice([str(hostile), str(hostile), *stage.bad_paths()[:-8]])
    name = chance.choice([n for n in stage.bad_names() if isinstance(n, str) and "\0" not in n and "\ud800" not in n])
    one.arguments = ["merge", "--low", first, "--out", str(one.folder / "out")]
    options = (
        ["--name", name],
        ["--second-low", str(stage.lora), "--second-strength", str(chance.choice([f for f in FLOATS if f != HUGE]))],
        ["--rank", str(chance.choice([i for i in INTEGERS if i != HUGE]))],
        ["--author", chance.choice(("\udcff\udc80", "x" * 5000, "\x1b[2J"))],
    )
    extra = chance.choice(options)
    one.told = f"{first[-40:]} {extra}"[:300]
    one.arguments += [f"{extra[0]}={extra[1]}", *extra[2:]]
    one.allowed = [one.folder / "out"]


def _preview(one: Try, chance: random.Random, stage: Stage) -> None:
    paths = [p for p in stage.bad_paths() if "\0" not in p and "\ud800" not in p]
    named = {"single": str(stage.shared / "model.safetensors"), "vae": str(stage.shared / "vae.safetensors"),
             "lora-single": str(stage.lora), "text-encoder": str(stage.shared / "umt5.safetensors")}  # fmt: skip
    slot = chance.choice((*named, "start-image", "clip-vision", "tokenizer"))
    named[slot] = chance.choice(paths)
    names = [n for n in stage.bad_names() if isinstance(n, str) and "\0" not in n and "\ud800" not in n]
    options: tuple[list[str], ...] = (
        ["--name", chance.choice(names)],
        ["--seed", str(chance.choice([i for i in INTEGERS if i != HUGE]))],
        ["--cfg", str(chance.choice([f for f in FLOATS if f != HUGE]))],
        ["--strength", "nan"],
        ["--prompt", "\udcff"],
        ["--num-frames", str(10**12 + 1)],
        ["--device", chance.choice(("meta", "cuda:99999999999999999999", "cpu:-1", "x" * 5000, "../x"))],
    )
    extra = chance.choice(options)
    one.told = f"{slot} {named[slot][:60]}; {extra}"[:300]
    one.arguments = ["preview", *(f"--{key}={value}" for key, value in named.items()), "--out", str(one.folder / "out")]
    one.arguments += ["--width=32", "--height=32", "--num-frames=1", "--steps=1", "--prompt=x", "=".join(extra)]
    one.allowed = [one.folder / "out"]


Make = Callable[[Try, random.Random, Stage], None]
KINDS: tuple[tuple[str, Make], ...] = (
    ("run folder", _run_folder),
    ("linked run folder", _linked_folder),
    ("LoRA", _lora),
    ("recipe", _recipe),
    ("job file", _job_file),
    ("run folder", _run_folder),
    ("linked run folder", _linked_folder),
    ("LoRA", _lora),
    ("merge", _merge),
    ("preview", _preview),
)
CAMPAIGN = Campaign(attack=attack, short=10, long=300)
