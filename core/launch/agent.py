"""The processes of a run over several GPUs, started and watched by torchrun's own agent (torch.distributed.elastic).

What it does otherwise than torchrun: machines have the number that they were given, so that rank 0 is where the run was
started; a rank that has failed leaves the others a moment to say what they saw, since they know who was lost; and nothing is
started again but what asks for it by its exit code. See docs.pytorch.org, "Elastic Agent" and "Rendezvous".
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from ..errors import RunError
from .exits import EXIT_LESS_MEMORY, EXIT_LOST_RANK

MOST_RESTARTS = 20  # each with less memory: a plan has fewer steps down than that
GRACE_S = 20.0  # for the other ranks, after one has failed: they write what they know
GRACE_AFTER_SILENCE_S = 4.0  # where a rank has waited for another in vain already
ARRIVAL = timedelta(seconds=600)  # of the other machines
RETURN = timedelta(seconds=90)  # of their ranks after a restart
POLL_S = 0.1


@dataclass(frozen=True)
class RunMachine:
    """One machine of a run, as it introduces itself to the others."""

    host: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class MachineGroup:
    """The machines of a run, and which of them this one is; by default the only one."""

    number: int = 0
    size: int = 1
    address: str = "127.0.0.1"  # of machine 0, for the ranks
    name: str = "run"  # of this start of the run, for the store


@dataclass
class Ended:
    """How a rank of this machine ended without being asked to."""

    local_rank: int
    rank: int
    code: int  # negative: the signal that killed it


@dataclass
class GroupOutcome:
    """How all of them ended."""

    is_finished: bool
    ended: list[Ended] = field(default_factory=list[Ended])  # the first to fail, by their order
    places: list[RunMachine] = field(default_factory=list[RunMachine])  # by the machine's number
    is_cut_off: bool = False  # machine 0 no longer answered


class Rendezvous(RendezvousHandler):
    """The meeting of machines that have their numbers already, over a store that one of them holds."""

    def __init__(self, store: Store, group: MachineGroup, place: RunMachine) -> None:
        super().__init__()
        self._store, self._group, self._place = store, group, place
        self._round = 0
        self._for_ranks: Any = None
        self.places: list[RunMachine] = [place]

    def get_backend(self) -> str:
        return "static"

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until every machine is there. RunError, which names the missing, if one does not come."""
        patience = RETURN if self._round else ARRIVAL
        self._round += 1
        group, store = self._group, PrefixStore(f"{self._group.name}/{self._round}", self._store)
        store.set(f"machine/{group.number}", json.dumps(asdict(self._place)))
        keys = [f"machine/{number}" for number in range(group.size)]
        try:
            store.wait(keys, patience)
        except RuntimeError as error:  # torch's DistStoreError is one, and stands for a lost connection too
            missing = [number for number, key in enumerate(keys) if not _has(store, key)]
            raise RunError(
                f"machine {', '.join(map(str, missing)) or '0'} of {group.size} did not come within "
                f"{patience.total_seconds():.0f} s, or was lost: start the same command there with its own --node-rank."
            ) from error
        self.places = [_place(store.get(key)) for key in keys]
        return RendezvousInfo(store, group.number, group.size, self._open_for_ranks(store))

    def _open_for_ranks(self, store: Store) -> RendezvousStoreInfo:
        """A store of this start's own, held by machine 0, that outlives each rank: by it they see who is lost."""
        if self._group.number == 0:
            self._for_ranks = open_store(self._group.address, 0, is_server=True)
            store.set("port", str(self._for_ranks.port))
        return RendezvousStoreInfo(self._group.address, int(store.get("port")))

    @property
    def use_agent_store(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing: the machines of a run are fixed."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._group.name

    def shutdown(self) -> bool:
        return True


class Connection:
    """Whether machine 0 still answers, asked once a second: where a cable is cut, a question waits for ever."""

    def __init__(self, address: tuple[str, int], silence: float) -> None:
        """`address`: of the store. `silence`: seconds without an answer after which it is lost."""
        self._store, self._silence = open_store(*address, is_server=False), silence
        self._answered = time.monotonic()
        threading.Thread(target=self._ask, daemon=True, name="connection").start()

    @property
    def is_lost(self) -> bool:
        return time.monotonic() - self._answered > self._silence

    def _ask(self) -> None:
        with suppress(RuntimeError):  # it has ended: no answer comes any more
            while True:
                self._store.check(["alive"])
                self._answered = time.monotonic()
                time.sleep(1.0)


class Agent(LocalElasticAgent):
    """torchrun's agent for this machine's ranks."""

    def __init__(
        self,
        command: list[str],
        places: Rendezvous,
        *,
        ranks: int,
        logs: Path,
        on_start: Callable[[], None],
        on_restart: Callable[[], None],
        should_restart: Callable[[], bool],
        connection: Connection | None = None,
    ) -> None:
        """`command`: of each rank. `ranks`: on this machine. `logs`: an empty folder. `connection`: to machine 0, if elsewhere.

        `on_start`: called whenever the ranks are started, `on_restart` before they are started again, if `should_restart`.
        """
        spec = WorkerSpec(
            role="rank",
            local_world_size=ranks,
            entrypoint=command[0],
            args=tuple(command[1:]),
            rdzv_handler=places,
            max_restarts=MOST_RESTARTS,
            monitor_interval=POLL_S,
        )
        super().__init__(
            spec,
            DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL, tee=Std.ALL),
            exit_barrier_timeout=30,
            log_line_prefix_template="[rank ${rank}] ",
        )
        self._places = places
        self._on_start, self._on_restart, self._should_restart = on_start, on_restart, should_restart
        self._ended: list[Ended] = []
        self._connection, self._is_cut_off = connection, False

    def train(self) -> GroupOutcome:
        """Until all ranks have ended. RunError if the other machines don't come."""
        result: RunResult | None = cast(Any, self).run()  # None: the meeting ended without a run
        is_finished = result is not None and not result.is_failed()
        return GroupOutcome(is_finished, self._ended, self._places.places, self._is_cut_off)

    def kill_ranks(self) -> None:
        """End them at once."""
        for process in self._processes().values():
            if process.poll() is None:
                _kill(process.pid)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:  # type: ignore[override]
        self._ended = []
        started: dict[int, Any] = cast(Any, super())._start_workers(worker_group)
        self._on_start()
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # type: ignore[override]
        """As torchrun does; but a failure is looked at first, and is final where no rank asks for another start."""
        if self._connection is not None and self._connection.is_lost and not self._is_cut_off:
            self._is_cut_off = True
            self.kill_ranks()
        if worker_group.state == WorkerState.HEALTHY:
            self._let_others_end(worker_group)
        result: RunResult = cast(Any, super())._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            if self._asks_for_restart and self._should_restart() and not self._is_cut_off:
                self._on_restart()
            else:
                self._remaining_restarts = 0
        return result

    @property
    def _asks_for_restart(self) -> bool:
        return any(end.code == EXIT_LESS_MEMORY for end in self._ended)

    def _let_others_end(self, worker_group: WorkerGroup) -> None:
        """If a rank has failed: wait for the others to notice and to end, and end those that don't."""
        processes, began = self._processes(), time.monotonic()
        while failed := {rank: code for rank, process in processes.items() if (code := process.poll())}:
            known = {end.local_rank for end in self._ended}
            self._ended += [
                Ended(local_rank, worker_group.workers[local_rank].global_rank, code)
                for local_rank, code in failed.items()
                if local_rank not in known
            ]
            waited_before = all(code == EXIT_LOST_RANK for code in failed.values())
            patience = GRACE_AFTER_SILENCE_S if waited_before else GRACE_S
            if all(process.poll() is not None for process in processes.values()):
                return
            if time.monotonic() - began > patience:
                self.kill_ranks()
                return
            time.sleep(POLL_S)

    def _processes(self) -> dict[int, Any]:
        """By local rank."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {local_rank: handler.proc for local_rank, handler in handlers.items()}


def open_store(host: str, port: int, *, is_server: bool, seconds: float = 60.0) -> Any:
    """torch.distributed's TCPStore, by which processes meet; port 0 of a server: any. Waits so many seconds for answers."""
    libuv: dict[str, Any] = {"use_libuv": False} if os.name == "nt" else {}  # which PyTorch is built without there
    return TCPStore(
        host, port, is_master=is_server, timeout=timedelta(seconds=seconds), wait_for_workers=False, **libuv
    )


def _has(store: Store, key: str) -> bool:
    try:
        return store.check([key])
    except RuntimeError:
        return False


def _place(data: bytes) -> RunMachine:
    told = json.loads(data)
    return RunMachine(str(told["host"]), tuple(map(str, told["devices"])))


def _kill(pid: int) -> None:
    """A rank, with what it has started: torchrun gives each a group of its own."""
    try:
        if os.name == "nt":
            os.kill(pid, signal.SIGTERM)  # ends it at once there
        else:
            os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
