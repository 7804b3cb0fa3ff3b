"""The machines of a run over several: who is there, and which run they all train now.

Machine 0 holds a store (torch.distributed's TCPStore) at the address that every machine is told. It alone reads the recipe's
data and makes the caches and the run folder; the others wait for its word, find the same folder under the same recipe's
`work`, and start their own processes on it. The folder must lie on a disk that they share.
"""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import write_atomic
from ..errors import ConfigError, RunError
from ..parallel.world import started_by_torchrun
from .failures import lost_machine
from .rank_environment import silence_s

ARRIVAL_S = 600.0  # for the other machines: they may be starting still
SHARED_S = 60.0  # until a file that one machine wrote is seen by another, on a slow network drive
POLL_S = 0.5
_TOKEN = ".meeting"  # in the run folder: what machine 0 wrote there
_END = "end"


@dataclass(frozen=True)
class Called:
    """What a machine was told of its run: by --nodes, --node-rank and --rendezvous."""

    number: int
    size: int
    address: str

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if self.size < 2 or not 0 <= self.number < self.size:
            raise ConfigError(
                f"--node-rank {self.number} of --nodes {self.size} can't be: of N machines, 2 or more, each has a number "
                "of 0 to N-1."
            )
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--rendezvous is '{self.address}': give the name or address of machine 0 and a free port there, such as "
                "10.0.0.1:29500."
            )
        if started_by_torchrun():
            raise ConfigError(
                "--nodes has no place under torchrun, which has started the machines already: leave it out."
            )

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


class Meeting:
    """The store that the machines talk by. RunError where machine 0 is not reached, or is lost."""

    def __init__(self, called: Called, devices: Sequence[str]) -> None:
        """`devices`: of this machine, that train together."""
        self.called, self.devices = called, list(devices)
        self._store = self._open()
        self._number = 0  # of the run that is trained, counted from 0
        told = {"host": socket.gethostname(), "gpus": len(self.devices)}
        self._set(f"here/{called.number}", told)

    def gpus(self, say: Callable[[str], None]) -> int:
        """How many devices all machines have together; waits until all are there."""
        found, told, end = 0, False, time.monotonic() + ARRIVAL_S
        for number in range(self.called.size):
            while (value := self._get(f"here/{number}")) is None:
                if not told:
                    say(f"waiting for machine {number}: start the same command there with --node-rank {number}")
                    told = True
                if time.monotonic() > end:
                    raise RunError(f"machine {number} of {self.called.size} did not come within {ARRIVAL_S:.0f} s.")
                time.sleep(POLL_S)
            found += int(value["gpus"])
        return found

    def announce(self, folder: Path) -> str:
        """As machine 0: call the others to a run. The name of this start of it, for each machine's worker."""
        token = secrets.token_hex(8)
        write_atomic(folder / _TOKEN, lambda file: file.write(token.encode()))
        name = f"run-{self._number}"
        self._set(name, {"folder": str(folder), "token": token})
        self._number += 1
        return name

    def close(self, patience: float) -> None:
        """As machine 0: no run follows. Leaves the others so many seconds to read that."""
        with suppress(RunError):
            self._set(f"run-{self._number}", {_END: True})
            end = time.monotonic() + patience
            while time.monotonic() < end and not all(
                self._get(f"gone/{number}") for number in range(1, self.called.size)
            ):
                time.sleep(POLL_S)

    def next_run(self, folder_of: Callable[[str], Path]) -> tuple[Path, str] | None:
        """As another machine: the next run's folder and the name of its start; None when no run follows.

        `folder_of`: where this machine sees a run's folder that machine 0 sees at a path. RunError if it is not the same.
        """
        name = f"run-{self._number}"
        while (told := self._get(name)) is None:
            time.sleep(POLL_S)
        if told.get(_END):
            self._set(f"gone/{self.called.number}", {_END: True})
            return None
        self._number += 1
        folder = folder_of(told["folder"])
        self._check_shared(folder, told)
        return folder, name

    def _check_shared(self, folder: Path, told: dict[str, Any]) -> None:
        file, end = folder / _TOKEN, time.monotonic() + SHARED_S
        while True:
            with suppress(OSError):
                if file.read_text(encoding="utf-8") == told["token"]:
                    return
            if time.monotonic() > end:
                break
            time.sleep(POLL_S)
        found = "which is another file here" if file.exists() else "which is not there"
        raise RunError(
            f"machine 0 trains in {told['folder']} and wrote {_TOKEN} there; this machine looked for it at {file}, {found}: "
            "the folder for work must lie on a disk that all machines share. Name its place on this machine."
        )

    def _open(self) -> Any:
        from .agent import open_store

        called, is_first = self.called, self.called.number == 0
        end = time.monotonic() + ARRIVAL_S
        while True:
            try:
                return open_store(called.host, called.port, is_server=is_first, seconds=20.0)
            except (RuntimeError, ValueError, OSError) as error:
                if is_first or time.monotonic() > end:
                    what = "can't be opened here" if is_first else f"was not reached within {ARRIVAL_S:.0f} s"
                    raise RunError(
                        f"{called.address} {what} ({str(error).splitlines()[0]}): it must be an address of machine 0 and a "
                        "free port that the other machines can reach."
                    ) from error
                time.sleep(POLL_S)

    def _set(self, key: str, value: dict[str, Any]) -> None:
        self._ask(lambda: self._store.set(key, json.dumps(value)))

    def _get(self, key: str) -> dict[str, Any] | None:
        return self._ask(lambda: json.loads(self._store.get(key)) if self._store.check([key]) else None)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """In a thread: where a cable is cut, nothing ever comes back, and Ctrl+C shall work all the same."""
        answers: list[Any] = []

        def ask() -> None:
            try:
                answers.append(question())
            except RuntimeError as error:  # torch's DistNetworkError is one
                answers.append(error)

        thread = threading.Thread(target=ask, daemon=True, name="meeting")
        thread.start()
        thread.join(silence_s())
        if answers and not isinstance(answers[0], RuntimeError):
            return answers[0]
        raise RunError(lost_machine(self.called.address)) from (answers[0] if answers else None)
