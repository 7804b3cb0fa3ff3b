"""A real ComfyUI for the campaigns that attack one: the miniature models, a small dataset, and what its process holds."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from wan_train.tests.conftest import PACK, find_host
from wan_train.tests.host_server import Host, start_host
from wan_train.tools.miniature import write_family
from wan_train.tools.server import HostError
from wan_train.tools.shapes import draw_dataset

TINY_CLIP = PACK / "tests" / "host_packs" / "tiny_clip"


@contextlib.contextmanager
def small_host(base: Path) -> Iterator[Host]:
    """ComfyUI with the pack, the miniature models and a dataset of one clip and one image in input/shapes."""
    found = find_host()
    if found is None:
        raise HostError("ComfyUI was not found: set COMFYUI_PATH to its folder.")
    write_family(base / "models")
    draw_dataset(base / "input" / "shapes", clips=1, images=1, size=64, frames=9, seed=0)
    with start_host(found, base, packs=[PACK, TINY_CLIP]) as host:
        yield host


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment."""

    mib: float  # resident memory
    files: int  # open file descriptors; handles on Windows
    threads: int
    children: int


def held_by(host: Host) -> Held:
    """What the host holds now."""
    process = psutil.Process(host.server.process.pid)
    return Held(
        mib=process.memory_info().rss / 2**20,
        files=getattr(process, "num_handles" if os.name == "nt" else "num_fds")(),
        threads=process.num_threads(),
        children=len(process.children(recursive=True)),
    )
