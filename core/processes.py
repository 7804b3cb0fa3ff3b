"""Which process of which machine: for names of temporary files and for lock files, to see whether their maker still lives."""

import atexit
import functools
import gc
import hashlib
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, cast

_PROC = Path("/proc")


@functools.cache
def this_machine() -> str:
    """6 hex digits for the machine, or the container, within which process ids are unique."""
    try:
        namespace = str((_PROC / "self" / "ns" / "pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:6]


def is_running(pid: int) -> bool:
    """Whether this machine has a process with this id; True where that can't be known."""
    if os.name == "nt":
        return _is_running_by_psutil(pid)
    try:
        os.kill(pid, 0)  # POSIX: looks only (on Windows it would end the process)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def birth(pid: int) -> str:
    """When the process was born, as a word that no later process with the same id has; empty where that can't be known."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # field 22: clock ticks after the boot (man 5 proc_pid_stat)
    except (OSError, IndexError, ValueError):
        return _birth_by_psutil(pid)


def _is_running_by_psutil(pid: int) -> bool:
    try:
        import psutil
    except ImportError:
        return True
    try:
        return psutil.pid_exists(pid)
    except (psutil.Error, OSError, OverflowError):  # no number of a process
        return True


def _birth_by_psutil(pid: int) -> str:
    try:
        import psutil
    except ImportError:
        return ""
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except (psutil.Error, OSError, ValueError, OverflowError):
        return ""


def postpone_collections() -> None:
    """Collect no garbage while modules are imported, which takes a fifth of an import of PyTorch and finds next to none."""
    gc.disable()


def resume_collections() -> None:
    """Collect garbage from now on, but do not walk through what is there: modules stay to the end."""
    gc.freeze()
    gc.enable()


def leave(code: int) -> NoReturn:
    """End this process, as at the end of its main module, but for taking its modules apart: with PyTorch that takes seconds.

    Threads that are no daemons are awaited, exit functions called, and what was printed is written.
    """
    cast(Any, threading)._shutdown()  # as Python does at its end: executors' threads wait to be told
    cast(Any, atexit)._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
            stream.flush()
    os._exit(code)
