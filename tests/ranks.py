"""Several ranks of one run on the CPU, for tests: real processes that talk through gloo.

    def gradients_of(world, job_path): ...          # on the module's top level; runs in each rank
    def test_x(ranks): first, second = ranks(2)(gradients_of, path)

The processes are started once for all tests of a session, since each has PyTorch to import. Where there are forks, one
process imports it, and the ranks are forks of that.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import ModuleType
from typing import Any

_KEY = "WANTRAIN_TEST_RANKS"
_FORKS = hasattr(os, "fork")
PATIENCE_S = 300.0  # a test that hangs fails in the end


class RankError(AssertionError):
    """What a rank raised, with its traceback."""


class Ranks:
    """Processes that each run one function of a test module as a rank."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._ids: list[int] = []
        self._processes: list[subprocess.Popen[bytes]] = []  # the ranks', or the one whose forks they are
        self._round = 0

    def of(self, size: int, *, context: int = 1) -> Callable[..., list[Any]]:
        """A caller for functions `f(world, *args)` of a test module, in `size` ranks: what each gives, by rank."""

        def call(function: Callable[..., Any], *args: Any) -> list[Any]:
            where = str(sys.modules[function.__module__].__file__), function.__name__
            self._start(size, where[0])
            self._round += 1
            store = Path(self._folder) / f"store_{os.getpid()}_{self._round}"
            for rank, pipe in enumerate(self._pipes[:size]):
                pipe.send((rank, size, context, str(store), where, args))
            return self._collect(size)

        return call

    def in_folder(self, folder: Path) -> "Ranks":
        """With files of its own there."""
        self._folder = folder
        return self

    def close(self) -> None:
        """End the processes."""
        self._end_ranks()
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._processes = []

    def _end_ranks(self) -> None:
        for number in self._ids if _FORKS else []:
            _end(number)
        self._pipes, self._ids = [], []

    def _start(self, size: int, module: str) -> None:
        missing = size - len(self._pipes)
        if missing <= 0:
            return
        key = secrets.token_hex(16)
        with Listener(authkey=key.encode()) as listener:
            for _ in range(missing):
                self._start_one(str(listener.address), key, module)
            new = [listener.accept() for _ in range(missing)]
        self._pipes += new
        self._ids += [pipe.recv() for pipe in new]

    def _start_one(self, address: str, key: str, module: str) -> None:
        if not _FORKS:
            command = [sys.executable, __file__, address]
            self._processes.append(subprocess.Popen(command, env={**os.environ, _KEY: key}))
            return
        if not self._processes:
            self._processes.append(subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE))
        pipe = self._processes[0].stdin
        assert pipe is not None
        pipe.write(json.dumps([address, key, module]).encode() + b"\n")
        pipe.flush()

    def _collect(self, size: int) -> list[Any]:
        results, problems = [], []
        for rank, pipe in enumerate(self._pipes[:size]):
            try:
                if not pipe.poll(PATIENCE_S):
                    raise EOFError("it gave no answer")
                is_good, value = pipe.recv()
            except (EOFError, OSError) as error:
                is_good, value = False, f"the process ended or hung: {error}"
            results.append(value)
            if not is_good:
                problems.append(f"rank {rank}: {value}")
        if problems:
            (self._end_ranks if _FORKS else self.close)()  # the others may wait for one that is gone
            raise RankError("\n".join(problems))
        return results


def _end(number: int) -> None:
    """Kill a process that nobody has to wait for, and return when it is gone, with its memory."""
    end = time.monotonic() + PATIENCE_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)
        while time.monotonic() < end:
            os.kill(number, 0)
            time.sleep(0.005)


def serve(pipe: Connection) -> None:
    """A rank's process: does what it is sent until the pipe closes."""
    from torch import distributed as dist
    from wan_train.core.parallel.world import World, with_groups

    pipe.send(os.getpid())
    while True:
        try:
            rank, size, context, store, (file, name), args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
            world = World(
                rank=rank, size=size, local_rank=rank, local_size=size, host_group=dist.new_group(backend="gloo")
            )
            function = getattr(_load(_name_of(file), Path(file)), name)
            world = with_groups(world, context)
            dist.barrier()  # else one that has nothing to say is gone while another still opens its connections to it
            answer = True, function(world, *args)
        except BaseException:
            answer = False, traceback.format_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(answer)


def _import_all() -> None:
    import torch

    torch.set_num_threads(1)
    _load("conftest", Path(__file__).with_name("conftest.py"))  # the pack as `wan_train`


def _fork_for_orders() -> None:
    """A process that imports everything, and for each line that it is sent becomes a rank's process, too."""
    _import_all()
    import torch._dynamo  # noqa: F401 - checkpoints bring it in, in seconds
    from wan_train.core.adapters.peft_hooks import import_adapters

    import_adapters()
    with contextlib.suppress(ImportError):  # as does NF4, in each rank
        importlib.import_module("bitsandbytes")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the ranks
    for line in sys.stdin:
        address, key, module = json.loads(line)
        _load(_name_of(module), Path(module))  # once for all of them
        gc.freeze()  # else each fork's collections walk through, and copy, all that was imported
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with contextlib.suppress(BrokenPipeError):
                serve(Client(address, authkey=key.encode()))
            os._exit(0)


def _name_of(module: str) -> str:
    return f"ranked_{Path(module).stem}"


def _load(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


if __name__ == "__main__":
    if len(sys.argv) == 1:
        _fork_for_orders()
    else:
        _import_all()
        serve(Client(sys.argv[1], authkey=os.environ[_KEY].encode()))
