"""Processes of `wantrain` without the seconds that importing takes: forks of a process that has imported everything.

    python tests/warm.py ADDRESS        listens there until its standard input closes

`host_packs/warm_start` asks it for a process: it forks one, and tells its id, and when it has ended its exit code. In a test,
processes are started anew, as people's are, with the fixture `cold`.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PACK = Path(__file__).resolve().parent.parent
MODULES = ("core.cli.commands.train", "core.cli.follow_train", "core.cli.commands.cache", "core.cli.commands.run")
# Not where there is a GPU: a library that is imported may begin with CUDA, which no fork can use then.
CAN_FORK = sys.platform == "linux" and not any(Path(each).exists() for each in ("/dev/nvidiactl", "/dev/dxg"))


@contextlib.contextmanager
def warm_processes() -> Iterator[str]:
    """While it lasts: the address of a process that forks. It imports everything when it is asked for the first time."""
    from wan_train.core.launch.ahead import worker_environment

    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address = Path(folder) / "warm"
        command, environment = [sys.executable, __file__, str(address)], worker_environment(os.environ)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), "it did not start"
            yield str(address)
            process.kill()


def start(*arguments: object, **options: Any) -> Any:
    """As subprocess.Popen, of `wantrain ARGUMENTS` without a terminal; `stdout` is a file, or None."""
    from wan_train.tests.host_packs.warm_start import start

    command = [sys.executable, str(PACK / "wantrain.py"), *map(str, arguments)]
    return start(command, stdin=subprocess.DEVNULL, **options)


def run(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, in_one: bool = False
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with capture_output and text, of `wantrain ARGUMENTS` without a terminal.

    `in_one`: `stdout` has both streams.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        streams = {"stdout": out, "stderr": subprocess.STDOUT if in_one else errors}
        with start(*arguments, cwd=cwd, env=env, **streams) as process:
            code = process.wait()
        said = []
        for file in (out, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


class _Server:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._asking: dict[int, socket.socket] = {}  # by the process's id
        self._ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup)
        self._selector = selectors.DefaultSelector()
        for source in (listener, self._ended, 0):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        """Returns in each fork, with everything set as in a process of its own."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    os._exit(0)
                elif key.fileobj == self._ended:
                    self._tell_ends()
                elif self._fork():
                    return

    def _fork(self) -> bool:
        """Whether this is the fork."""
        connection, _ = self._listener.accept()
        files: list[int] = []
        try:
            head, files, _, _ = socket.recv_fds(connection, 4, 3)
            order = json.loads(connection.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL))
        except (OSError, struct.error, ValueError):  # whoever asks was killed meanwhile: the others' processes go on
            connection.close()
            for file in files:
                os.close(file)
            return False
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for held in (connection, self._listener, *self._asking.values()):
                held.close()
            _become(files, **order)
            return True
        for file in files:
            os.close(file)
        self._asking[pid] = connection
        with contextlib.suppress(OSError):  # whoever asks was killed meanwhile
            connection.sendall(struct.pack("!i", pid))
        return False

    def _tell_ends(self) -> None:
        os.read(self._ended, 4096)
        with contextlib.suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                with self._asking.pop(end[0]) as connection, contextlib.suppress(OSError):
                    connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(end[1])))


def _become(files: Sequence[int], *, arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Make a fork what a process with these arguments, files and surroundings is at its start."""
    os.setsid()
    for place, file in enumerate(files):
        os.dup2(file, place)
    for file in set(files) - {0, 1, 2}:
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    tempfile.tempdir = None
    sys.argv = arguments
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - they last as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115


class RankFork:
    """A rank, forked by torchrun's agent in a process that is warm itself: its child, as subprocess.Popen has one."""

    def __init__(self, arguments: list[str], files: Sequence[Any], env: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            name = f"rank {env['RANK']}"
            Path("/proc/self/comm").write_text(name)  # by which a test finds it
            given = [file.fileno() if file else own for own, file in ((1, files[0]), (2, files[1]))]
            _become([0, *given], arguments=arguments, cwd=str(Path.cwd()), env=env)
            act_as_command()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.returncode if self.returncode is not None else self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:  # noqa: ARG002 - its end was seen, or is near
        """The exit code."""
        return self.returncode if self.returncode is not None else self._wait(0)

    def _wait(self, options: int) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _fork_ranks() -> None:
    """Torchrun's agent forks ranks, too."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    def start(handler: Any, args: tuple[str, ...], env: dict[str, str]) -> RankFork:
        at = [Path(part).name for part in args].index("wantrain.py")
        return RankFork(list(args[at:]), (handler._stdout, handler._stderr), env)

    SubprocessHandler._popen = start  # type: ignore[method-assign]


def _import_all() -> None:
    from wan_train.core.adapters.peft_hooks import import_adapters
    from wan_train.core.encoders.light_import import for_encoders, wan_vae_class
    from wan_train.core.later_compiler import import_compiler_later
    from wan_train.core.offline import stay_offline
    from wan_train.tests.host_packs.warm_start import use

    stay_offline()
    import_compiler_later()
    import_adapters()
    for name in MODULES:
        importlib.import_module(f"wan_train.{name}")
    wan_vae_class()
    with for_encoders():
        from transformers import UMT5Config, UMT5EncoderModel  # noqa: F401
    with contextlib.suppress(ImportError):  # peft imports it with the first adapter, in seconds
        importlib.import_module("bitsandbytes")
    _fork_ranks()
    use()


def _serve() -> None:
    """Returns in each fork."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        os.dup2(2, 1)
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            sys.exit()  # nobody has asked
        sys.path.insert(0, str(PACK))
        import wantrain

        wantrain.load_pack()
        _import_all()
        gc.freeze()  # else each fork's collections walk through, and copy, all that was imported
        _Server(listener).serve()


def act_as_command() -> NoReturn:
    """Do what `sys.argv` says, and end this process as Python would."""
    from wan_train.core.cli.main import main
    from wan_train.core.processes import leave

    try:
        if sys.argv[0] == "-m":
            sys.argv.pop(0)
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            code = 0
        else:
            code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


if __name__ == "__main__":
    _serve()
    act_as_command()
