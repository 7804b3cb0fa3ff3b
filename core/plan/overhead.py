"""What a process takes of a GPU's memory beside its tensors: the driver's context, and the libraries' kernels.

nvidia-smi counts it and PyTorch's allocator does not, so a budget has to. What others take is what is in use before this
process has a context; what is in use later, less that and the tensors, is the process's own.
"""

import shutil
import subprocess
import threading
from typing import Any, cast

import torch

_LEAST, _MOST = 150 * 2**20, 2 * 2**30  # beyond, another program came or went meanwhile
_LINKS = 4 * 2**30  # more where GPUs talk to each other: NCCL took 2.3 GiB of each of two H200s
_MIB = 2**20
_SECONDS = 5.0  # that nvidia-smi may take
_COMMAND = ["nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"]


class OtherPrograms:
    """Memory in use on each GPU when this was made, which is before this process uses one; read beside other work."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._thread = threading.Thread(target=self._read, daemon=True, name="memory in use")
        self._thread.start()

    def wait(self) -> None:
        """Until it has been read."""
        self._thread.join()

    def used(self, device: torch.device) -> int | None:
        """Bytes on `device`; None where nvidia-smi does not say."""
        self._thread.join()
        return self._used.get(_uuid(device))

    def _read(self) -> None:
        command = shutil.which(_COMMAND[0])
        if command is None:
            return
        try:
            done = subprocess.run(
                [command, *_COMMAND[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # of Windows
            )
        except (OSError, subprocess.TimeoutExpired):
            return
        self._used = parse(done.stdout)


def parse(text: str) -> dict[str, int]:
    """Bytes in use by the GPU's UUID, from nvidia-smi's lines "GPU-..., MiB"; what is no such line is left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, number = (part.strip() for part in line.partition(","))
        if number.isdigit():
            found[name.removeprefix("GPU-")] = int(number) * _MIB
    return found


def measure_overhead(device: torch.device, others: int | None, *, ranks: int = 1) -> int | None:
    """Bytes that this process takes now of `device` beside what PyTorch's allocator has; `others`: what others take.

    `ranks`: processes that train together, whose links take memory, too. None where that
    is not known, or where what comes out can't be right.
    """
    if device.type != "cuda" or others is None:
        return None
    free, total = torch.cuda.mem_get_info(device)
    return plausible(total - free - torch.cuda.memory_reserved(device) - others, ranks=ranks)


def plausible(overhead: int, *, ranks: int = 1) -> int | None:
    """`overhead`, or None for what another program must have changed."""
    return overhead if _LEAST <= overhead <= _MOST + (_LINKS if ranks > 1 else 0) else None


def _uuid(device: torch.device) -> str:
    return str(getattr(cast(Any, torch.cuda).get_device_properties(device), "uuid", ""))
