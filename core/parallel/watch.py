"""Whether the other ranks of a run still live: each says so once a second, and the others listen.

A collective of torch.distributed waits for a rank that is gone: gloo until the system closes its connection, NCCL until its
watchdog's time is over, which must be as long as the slowest batch. So the ranks meet beside it, in the store that torchrun
holds. One that ends says why; one that falls silent was killed, hangs, or its machine is gone. Both end this process, too, with
a sentence that names the rank.

Each also says how far it has come in its step (`progress.py`). The first rank looks whether the run hangs, though all of them
live (`standstill.py`), and says so; that ends all of them, too. What hangs outside of steps is left to torch.distributed's own
limits (`world.PATIENCE`).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ..errors import START_AGAIN, RunError
from .progress import Progress, RankPlace
from .standstill import Standstill, StandstillLimits

SILENCE_S = 45.0  # of a rank, after which the others take it for lost: a run ends within a minute
START_S = 600.0  # as long may a process take to start, until it is heard for the first time
BEAT_S = 1.0
SUSPECT_S = 5.0  # of silence, where a collective has failed as well
_CONNECT = timedelta(minutes=5)
GRACE_S = 3.0  # for this process to end by itself, by an error of its own


class LostRankError(RunError):
    """Another rank is gone. `loss` says how."""

    def __init__(self, loss: "LostRank") -> None:
        super().__init__(loss.message, about=loss.farewell.about if loss.farewell else START_AGAIN)
        self.loss = loss


@dataclass(frozen=True)
class Farewell:
    """How a rank ended."""

    code: int  # of the process
    message: str = ""
    about: str = ""  # as `WanTrainError.about`


@dataclass(frozen=True)
class LostRank:
    """A rank that is gone: by its own word, or without one."""

    message: str
    farewell: Farewell | None = None


class Watch:
    """Tells the others that this rank lives, and looks whether they do.

    `begin`, and in the end `leave`. What the ranks wait for beside torch.distributed goes through `say` and `has`.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        name: str,
        *,
        on_loss: Callable[[LostRank], None],
        silence: float = SILENCE_S,
        progress: Progress | None = None,
        limits: StandstillLimits | None = None,
    ) -> None:
        """`store`: of torch.distributed, a connection for this object alone. `name`: of the rank's GPU, for people.

        `progress`: of this rank. `limits`: how long the run may stand still; the first rank's hold.
        `on_loss`: called once, in a thread, when another is lost and this rank has not ended for `GRACE_S` since.
        """
        self._store, self._rank, self._size, self._name = store, rank, size, name
        self._on_loss, self._silence = on_loss, silence
        self._progress, self._standstill = progress or Progress(), Standstill(limits or StandstillLimits())
        self._lock = threading.Lock()  # a connection takes one question at a time
        self._over = threading.Event()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._start = time.monotonic()
        self._loss: LostRank | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def begin(self) -> None:
        """Be heard, and listen."""
        self.say(f"name/{self._rank}", self._name)
        self._beat(0)
        self._thread.start()

    def leave(self, farewell: Farewell) -> None:
        """Say how this rank ends, and listen no more."""
        with suppress(RuntimeError):  # the store is gone, and with it those who would listen
            self.say(f"left/{self._rank}", json.dumps(asdict(farewell)))
        self._over.set()

    def say(self, key: str, value: str = "") -> None:
        """For the others to find. RuntimeError if the store is gone."""
        with self._lock:
            self._store.set(key, value)

    def has(self, key: str) -> bool:
        """Whether anybody has said it. RuntimeError if the store is gone."""
        with self._lock:
            return bool(self._store.check([key]))

    def hear(self, key: str) -> str:
        """What was said; "" if nothing was. RuntimeError if the store is gone."""
        return (self._get(key) or b"").decode()

    def others_left(self) -> Mapping[int, Farewell]:
        """Those who have ended, and how."""
        found = {}
        for rank in self._others:
            value = self._get(f"left/{rank}")
            if value is not None:
                found[rank] = Farewell(**json.loads(value))
        return found

    def loss(self) -> "LostRank | None":
        """Who is gone, if anybody is."""
        return self._look(self._silence)

    def explain(self, patience: float = SUSPECT_S + 2 * BEAT_S) -> "LostRank | None":
        """After a collective has failed: who is gone. None if all of them live."""
        end = time.monotonic() + patience
        while True:
            is_last = time.monotonic() >= end  # before the look: a process that is kept waiting looks at the end, too
            loss = self._look(SUSPECT_S)
            if loss is not None or is_last:
                return loss
            self._over.wait(BEAT_S / 4)

    @property
    def _others(self) -> Sequence[int]:
        return [rank for rank in range(self._size) if rank != self._rank]

    def _run(self) -> None:
        number, found = 0, 0.0
        while not self._over.wait(BEAT_S):
            number += 1
            self._beat(number)
            self._loss = self._loss or self._look(self._silence)
            if self._rank == 0 and self._loss is None:
                self._judge()
            if self._loss is None:
                continue
            found = found or time.monotonic()
            if time.monotonic() - found >= GRACE_S and not self._over.is_set():
                self._on_loss(self._loss)
                return

    def _beat(self, number: int) -> None:
        try:
            self.say(f"alive/{self._rank}", f"{number} {self._progress.place().written()}")
        except RuntimeError:
            self._loss = self._loss or _lost_store()

    def _judge(self) -> None:
        """Say it, for all ranks, if the run hangs."""
        places = {self._rank: self._progress.place()}
        for rank, (value, _) in list(self._heard.items()):  # the run's own thread listens, too
            places[rank] = RankPlace.read(value.decode().partition(" ")[2])
        with suppress(RuntimeError):  # the store is gone, which is seen next
            if len(places) == self._size and not self.others_left():
                hang = self._standstill.look(places, time.monotonic())
                if hang is not None:
                    self.say("hang", hang.sentence(self._called))

    def _look(self, silence: float) -> LostRank | None:
        """The first who is gone, or hangs. Those who have left well are not."""
        try:
            if hang := self.hear("hang"):
                return LostRank(hang)
            left = self.others_left()
            for rank in self._others:
                if rank not in left and self._is_silent(rank, silence):
                    return LostRank(f"{self._called(rank)} was lost: its process was killed, or hangs, or its machine is gone; "
                                "the last checkpoint is kept. Start the run again to go on.")  # fmt: skip
                if rank in left and left[rank].message:
                    return LostRank(f"{self._called(rank)} has ended: {left[rank].message}", left[rank])
        except RuntimeError:
            return _lost_store()
        return None

    def _is_silent(self, rank: int, silence: float) -> bool:
        now, value = time.monotonic(), self._get(f"alive/{rank}")
        if value is None:
            return now - self._start > max(START_S, silence)
        last, since = self._heard.get(rank, (b"", now))
        if value != last:
            since = now
        self._heard[rank] = value, since
        return now - since > silence

    def _called(self, rank: int) -> str:
        name = self._get(f"name/{rank}")
        return f"rank {rank}" + (f" ({name.decode()})" if name else "")

    def _get(self, key: str) -> bytes | None:
        with self._lock:
            return self._store.get(key) if self._store.check([key]) else None


def _lost_store() -> LostRank:
    return LostRank(
        "the process that started this run, or its machine, is gone; the last checkpoint is kept. Start the run again to go on."
    )


def open_stores(environment: Mapping[str, str] = os.environ) -> tuple[Any, Any]:
    """Connections to the store where the ranks meet, which torchrun holds, or rank 0: for a `Watch`, for torch.distributed."""
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    is_held = environment.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
    start = environment.get("TORCHELASTIC_RESTART_COUNT", "0")

    def connect(name: str, *, is_master: bool) -> Any:
        store = TCPStore(address, port, is_master=is_master, timeout=_CONNECT, wait_for_workers=False)
        return PrefixStore(f"wantrain/{start}/{name}", store)

    watch = connect("watch", is_master=not is_held and environment["RANK"] == "0")
    return watch, connect("group", is_master=False)
