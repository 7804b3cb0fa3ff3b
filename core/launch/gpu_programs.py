"""What is free on each GPU, and which programs are on it, by nvidia-smi: it needs no memory of a GPU itself."""

import shutil
import subprocess
from dataclasses import dataclass

MIB = 2**20
_SECONDS = 10.0  # that nvidia-smi may take; without the driver's persistence mode it wakes the GPUs first
_GPUS = "--query-gpu=uuid,memory.free,memory.total"
_PROGRAMS = "--query-compute-apps=gpu_uuid,pid,used_memory,process_name"


@dataclass(frozen=True)
class Program:
    """A process that uses a GPU."""

    pid: int
    name: str
    num_bytes: int | None  # of the GPU's memory; None where the driver does not count it, as on Windows


@dataclass(frozen=True)
class GpuMemory:
    """Memory of one GPU, in bytes, and who is on it: the one that takes most first."""

    free: int
    total: int
    programs: tuple[Program, ...] = ()


def read_gpus() -> dict[str, GpuMemory]:
    """By the GPU's UUID without "GPU-"; {} where there is no nvidia-smi, or it does not answer."""
    gpus = _ask(_GPUS)
    return parse(gpus, _ask(_PROGRAMS)) if gpus else {}


def parse(gpus: str, programs: str) -> dict[str, GpuMemory]:
    """Of nvidia-smi's tables in CSV, without a header, in MiB. Lines that hold something else are left out."""
    on: dict[str, list[Program]] = {}
    for row in _rows(programs, 4):
        if row[1].isdigit():
            used = int(row[2]) * MIB if row[2].isdigit() else None
            on.setdefault(row[0], []).append(Program(int(row[1]), row[3], used))
    return {
        uuid.removeprefix("GPU-"): GpuMemory(
            int(free) * MIB, int(total) * MIB, tuple(sorted(on.get(uuid, []), key=lambda one: -(one.num_bytes or 0)))
        )
        for uuid, free, total in _rows(gpus, 3)
        if free.isdigit() and total.isdigit()
    }


def command_of(program: Program) -> str:
    """What runs, as short as a person knows it by: "python main.py (of alice)"; nvidia-smi's name where the system hides it."""
    try:
        import psutil
    except ImportError:
        return _last(program.name)
    try:
        process = psutil.Process(program.pid)
        words = [_last(word) for word in process.cmdline()[:3] if not word.startswith("-")]
        return f"{' '.join(words[:2]) or _last(program.name)} (of {process.username()})"
    except (psutil.Error, OSError, KeyError):  # gone, of another user, or a number of another container
        return _last(program.name)


def _ask(query: str) -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # of Windows
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _rows(text: str, columns: int) -> list[list[str]]:
    """Of so many columns; the last one may hold commas."""
    lines = [[cell.strip() for cell in line.split(",", columns - 1)] for line in text.splitlines()]
    return [line for line in lines if len(line) == columns]


def _last(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]
