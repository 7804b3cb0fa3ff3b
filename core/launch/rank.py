"""One rank of a run over several GPUs, as torchrun starts it: one process for each GPU.

python -m torch.distributed.run --nproc-per-node 2 wantrain.py train RUN_FOLDER

The first rank holds the folder and writes it. Every rank holds its own device. All of them end together, with one exit code:
if one is lost or fails, the others say so and end, too.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..devices import resolve_device
from ..errors import START_AGAIN, WanTrainError
from ..gpu_failure import GpuFailedError, telling_failures
from ..locks import FileLock
from ..memory.deterministic import set_environment
from ..parallel.agree import StartAgainError
from ..parallel.progress import Progress
from ..parallel.watch import Farewell, LostRank, LostRankError, Watch, open_stores
from ..parallel.world import open_world
from ..plan.overhead import OtherPrograms
from ..plan.spread import choose_context
from ..settings.job import Job
from ..train.checks import check_model_file
from ..train.events import EventWriter
from ..train.find_run import progress_of
from ..train.run import RunStoppedError, run_job
from ..train.run_folder import RunFolder
from ..train.silent import Silent
from .exits import EXIT_ERROR, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_LESS_MEMORY, EXIT_LOST_RANK, EXIT_STOPPED
from .rank_environment import DEVICES, silence_s, standstill_limits

log = logging.getLogger(__name__)
Asked = Callable[[], bool]


@dataclass(frozen=True)
class Seat:
    """Where a rank is: its number, its machine, its device."""

    rank: int
    size: int
    local_rank: int
    machine: str
    devices: tuple[str, ...]  # of the machine's ranks

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Seat":
        """As torchrun says it. Without `WANTRAIN_DEVICES` a rank has the GPU of its number, or the CPU if there is none."""
        local_rank, local_size = int(environment["LOCAL_RANK"]), int(environment["LOCAL_WORLD_SIZE"])
        named = [name.strip() for name in environment.get(DEVICES, "").split(",") if name.strip()]
        if len(named) < local_size:
            named = [f"cuda:{number}" if torch.cuda.is_available() else "cpu" for number in range(local_size)]
        return cls(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=local_rank,
            machine=environment.get("GROUP_RANK", "0"),
            devices=tuple(named[:local_size]),
        )

    @property
    def device(self) -> str:
        """This rank's."""
        return self.devices[self.local_rank]


def train_rank(folder: RunFolder, begin: Callable[[RunFolder], tuple[Job, Asked, FileLock]], stop: Asked) -> int:
    """Train the job of `folder` as one of the ranks; the process's exit code.

    `begin`: what the first rank does before the others (see `worker.train`): takes the folder's lock, and looks whether the
    run shall stop. `stop`: whether this process was asked to.
    """
    seat = Seat.of()
    name = f"{seat.device} of {socket.gethostname()}"
    for_watch, for_groups = open_stores()
    events: list[EventWriter] = []
    progress = Progress()
    watch = Watch(
        for_watch,
        seat.rank,
        seat.size,
        name,
        on_loss=lambda loss: _end(loss, events),
        silence=silence_s(),
        progress=progress,
        limits=standstill_limits(),
    )
    watch.begin()
    farewell = Farewell(EXIT_ERROR, "it failed; see the log")
    try:
        rank = _Rank(seat, resolve_device(seat.device), watch, progress, folder, stop, events)
        code = rank.train(begin, for_groups)
        farewell = Farewell(code)
        _wait_for_first(seat, watch)
        return code
    except LostRankError as error:
        farewell = Farewell(_code_of(error.loss))
        log.error("%s", error)
        return farewell.code
    except StartAgainError as error:
        farewell = Farewell(EXIT_LESS_MEMORY, str(error), error.about)
        log.error("%s", error)
        return EXIT_LESS_MEMORY
    except WanTrainError as error:
        farewell = Farewell(EXIT_ERROR, str(error), error.about)
        raise
    except KeyboardInterrupt:
        farewell = Farewell(EXIT_INTERRUPTED, "interrupted")
        raise
    except Exception as error:
        farewell = Farewell(EXIT_ERROR, f"{type(error).__name__}: {error}")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others when the first process has ended
        watch.leave(farewell)


def _wait_for_first(seat: Seat, watch: Watch) -> None:
    """The first leaves first: torchrun ends the others when it sees one end. If it is lost, `watch` ends this process."""
    while seat.rank and 0 not in watch.others_left():
        time.sleep(0.05)


def _code_of(loss: LostRank) -> int:
    return EXIT_LOST_RANK if loss.farewell is None else loss.farewell.code


def _end(loss: LostRank, events: list[EventWriter]) -> None:
    """End this process, which may wait for the lost rank where no exception reaches it."""
    code = _code_of(loss)
    try:
        log.error("%s", loss.message)
        if code != EXIT_LESS_MEMORY:
            for each in events:
                each.write("error", message=loss.message, about=loss.farewell.about if loss.farewell else START_AGAIN)
    finally:
        os._exit(code)


class _Rank:
    """This process's part of the run."""

    def __init__(
        self,
        seat: Seat,
        device: torch.device,
        watch: Watch,
        progress: Progress,
        folder: RunFolder,
        stop: Asked,
        events: list[EventWriter],
    ) -> None:
        self._seat, self._device, self._watch, self._folder = seat, device, watch, folder
        self._progress, self._stop, self._events = progress, stop, events
        self._told: set[str] = set()

    def train(self, begin: Callable[[RunFolder], tuple[Job, Asked, FileLock]], store: object) -> int:
        """To the end, with the folder held by the first rank."""
        if self._seat.rank:
            self._wait("folder")
            return self._train(self._folder.read_job(), self._stop, Silent(self._folder.events_path), store)
        job, asked, lock = begin(self._folder)
        try:
            events = EventWriter(self._folder.events_path)
            self._events.append(events)
            self._watch.say("folder")
            return self._train(job, asked, events, store)
        finally:
            lock.release()

    def _train(self, job: Job, asked: Asked, events: EventWriter, store: object) -> int:
        try:
            lora = self._explained(lambda: self._run(job, asked, events, store))
        except RunStoppedError:
            if self._seat.rank == 0:
                with suppress(OSError):  # the next start forgets it, too
                    self._folder.clear_stop()
            events.write("stopped", message="stopped")
            return EXIT_STOPPED
        except StartAgainError:
            raise
        except WanTrainError as error:
            self._tell_error(events, str(error), error.about)
            raise
        except Exception as error:
            details = f"(details in {self._folder.log_path})"
            self._tell_error(events, f"{type(error).__name__}: {error} {details}")
            raise
        events.write("finished", lora=lora.name)
        return EXIT_FINISHED

    def _tell_error(self, events: EventWriter, message: str, about: str = "") -> None:
        self._events.clear()  # this is the last word, whatever the others say
        with suppress(OSError, WanTrainError):
            events.write("error", message=message, **({"about": about} if about else {}))

    def _explained(self, act: Callable[[], Path]) -> Path:
        """What `act` gives; LostRankError, or StartAgainError, for what torch says when another rank is gone.

        A GPU may fail because another's memory, which it reads, has gone with its process.
        """
        try:
            return act()
        except (RuntimeError, GpuFailedError) as error:
            loss = self._watch.explain()
            if loss is None:
                raise
            if loss.farewell is not None and loss.farewell.code == EXIT_LESS_MEMORY:
                raise StartAgainError(loss.message, about=START_AGAIN) from error
            raise LostRankError(loss) from error

    def _run(self, job: Job, asked: Asked, events: EventWriter, store: object) -> Path:
        if job.memory.deterministic:
            set_environment()  # before the ranks meet
        device, others = self._device, None
        if device.type == "cuda":
            others = OtherPrograms()
            others.wait()  # the device has none of this process's memory until here
            with telling_failures(device, lambda: progress_of(self._folder), rank=self._seat.rank):
                torch.cuda.set_device(device)
        with self._holding_device(asked, events):
            self._watch.say(f"ready/{self._seat.rank}")
            for rank in range(self._seat.size):
                self._wait(f"ready/{rank}", asked, lambda: self._tell_waiting(events))
            context = self._settled(job, asked, events).parallel.context
            with open_world(device, context=context, store=store, progress=self._progress) as world:
                return run_job(self._folder, events, device, asked, others=others, world=world)

    def _settled(self, job: Job, asked: Asked, events: EventWriter) -> Job:
        """The job with an answer to how many GPUs share each clip: the first rank chooses it where the job leaves it open.

        It is written into the folder, which all ranks read the job from.
        """
        if job.parallel.context:
            return job
        if self._seat.rank:
            self._wait("spread", asked)
            return self._folder.read_job()
        spread = choose_context(
            job,
            check_model_file(job.model),
            self._seat.size,
            device=self._device,
            folder=self._folder.scratch_path,
            machine=len(self._seat.devices),
            batches=job.loop.gradient_accumulation,
        )
        events.write("status", message=spread.why)
        job = replace(job, parallel=spread.settle(job.parallel))
        self._folder.write_job(job)
        self._watch.say("spread")
        return job

    @contextmanager
    def _holding_device(self, asked: Asked, events: EventWriter) -> Generator[None]:
        """With the lock of this rank's device. Ranks of one machine take theirs in the order of the devices' names.

        So do those of every other run, none of which can then wait for a device of the other for ever.
        """
        from .worker import device_lock

        seat, order = self._seat, sorted(set(self._seat.devices))
        place = order.index(seat.device)
        if seat.devices.index(seat.device) != seat.local_rank:  # a rank before holds it for both
            yield
            return
        if place:
            self._wait(f"device/{seat.machine}/{place - 1}", asked, lambda: self._tell_waiting(events))
        turn = device_lock(self._device)
        while not turn.acquire():
            message = f"waiting for {self._device}: another run is training on it, such as the other expert's. {turn.holder()}"
            self._watch.say(f"waiting/{seat.rank}", message.rstrip(" ."))
            self._tell_waiting(events)
            self._stop_if(asked)
            time.sleep(0.2)
        try:
            self._watch.say(f"device/{seat.machine}/{place}")
            yield
        finally:
            turn.release()

    def _tell_waiting(self, events: EventWriter) -> None:
        """Who waits for a device, each once."""
        for rank in range(self._seat.size):
            message = self._watch.hear(f"waiting/{rank}")
            if message and message not in self._told:
                self._told.add(message)
                events.write("status", message=message)

    def _wait(self, key: str, asked: Asked | None = None, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until somebody has said `key`. RunStoppedError if the run shall stop, here or on another rank; LostRankError."""
        while not self._watch.has(key):
            self._stop_if(asked or self._stop)
            meanwhile()
            time.sleep(0.05)

    def _stop_if(self, asked: Asked) -> None:
        if loss := self._watch.loss():  # first: torchrun asks this process to end when another has failed
            raise LostRankError(loss)
        stopped = any(left.code == EXIT_STOPPED for left in self._watch.others_left().values())
        if stopped or asked():
            raise RunStoppedError
