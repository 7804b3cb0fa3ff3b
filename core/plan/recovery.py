"""What happens when memory runs out: the whole of it, from the start of a run to the next run.

1. Before the start a plan is chosen that fits what is free, less a margin (`planner.py`), and less what runs of this kind
   have been short of before (`shortages.py`, kept and read by `learnt.py`). If none fits, the run is refused with what would.
2. While the model is loaded (`Descent.reach`), and in every step (`Recovery.attempt`), an error is looked at: does it say that
   memory is out, the GPU's or the machine's (`core.shortage`)? Every other error ends the run.
3. The step's remains are freed: gradients, state that the optimizer had begun to make, copies under way.
4. A leaner plan is put on the model in the place of the one that failed (`step_down` here): the same plan without CUDA graphs;
   else the fastest that takes 8 % less and keeps to the user's options; else the fastest without these options; else whatever
   takes least. If nothing takes less, the run ends with a sentence, and its last checkpoint is kept.
5. The same step is done again, and a sentence in the event log tells what changed. Nothing is lost: a step is a function of
   its number and the weights, and its last act alone changes weights and the optimizer's state. So a failed attempt leaves
   nothing but gradients, and its repetition gives what a run would give that had the new plan from this step on. Only a
   shortage in the middle of the update itself ends the run, to go on from the last checkpoint.
6. Main memory is watched before each step: a system that is out of it ends a process without a word. With less than 1 GiB
   free the plan steps down as if it had failed.
7. The shortage is kept for the next run of this kind, unless another program had taken the memory meanwhile; a run that comes
   to its end with as much refutes it (`Learnt.remember_shortage`, `remember_success`).

Where several ranks train together, all of this is done by all of them: one that runs out of memory tells the others after the
act, and all step down, to the plan that the first rank chooses by what all cards have. Where they talk within a forward
(context parallel, a sharded base) the others wait there for one that can't come: the shortage is kept, and the processes end
and are started again from the checkpoint (`StartAgainError`), with a plan below it. So do they where memory ran out in the
middle of the update, of some ranks alone.

Encoders, checkpoints and previews have no plan: see `core.shortage.try_twice`, `train/checkpoints.py` and `train/previews.py`.
"""

import gc
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, NoReturn, Protocol, TypeVar, cast

import torch

from ..errors import START_AGAIN, RunError
from ..parallel.agree import ElsewhereError, StartAgainError, Verdict, Votes
from ..parallel.world import ALONE
from ..settings.memory import MemoryOptions
from ..shortage import Shortage, shortage_of
from ..torch_compat import num_changes
from .choice import Choice
from .host import available_ram
from .plan import is_graphed
from .planner import Planner
from .words import changed, label, option_of

T = TypeVar("T")

LOW_RAM = 1 * 2**30  # free main memory, in bytes, below which the system may end this process without a word


class Events(Protocol):
    """Where a run tells what happens: `core.train.events.EventWriter` is one."""

    def write(self, event: str, **fields: Any) -> None: ...


class Ladder(Protocol):
    """Chooses the plan to go on with when memory has run out."""

    def step_down(self, failed: Choice, shortage: Shortage, /) -> Choice | None:
        """A choice that takes less than `failed`, or None."""
        ...

    def explain(self, choice: Choice, /) -> str:
        """The choice in one line."""
        ...

    def keep_for_next(self, failed: Choice, /) -> bool:
        """Keep for the next start that the GPU's memory did not suffice; whether that will choose less."""
        ...


def step_down(planner: Planner, failed: Choice, shortage: Shortage) -> tuple[Planner, Choice | None]:
    """The next choice to try after `failed`, None if nothing takes less; and the planner, which may do without graphs now."""
    if shortage == "vram" and is_graphed(planner.task, failed.plan):
        # Graphs hold their memory beside all else: the same plan without them is the first to try.
        plan = replace(planner.plan, cuda_graphs="off")
        planner = replace(planner, task=replace(planner.task, graphs=False), plan=plan)
        return planner, replace(failed, plan=replace(failed.plan, cuda_graphs="off"))
    lower = planner.step_down(failed, shortage)
    return planner, lower or replace(planner, options=MemoryOptions()).step_down(failed, shortage)


class Descent:
    """The plan that a run uses now, and the steps down to plans that take less memory."""

    def __init__(
        self, choice: Choice, ladder: Ladder, *, events: Events, device: torch.device, votes: Votes | None = None
    ):
        """`votes`: of the ranks that train together, all of which are at the same plan; None: this one alone."""
        self.choice = choice
        self.votes = votes or Votes(ALONE)
        self._ladder = ladder
        self._events = events
        self._device = device

    def reach(self, act: Callable[[Choice], T], step: int | None) -> T:
        """What `act` returns for the present choice, or for the first below it with which memory suffices.

        `step` updates are done; None: the model is being loaded. RunError if the last plan does not suffice.
        """
        while True:
            found, shortage, reason = None, None, ""
            try:
                found = act(self.choice)
            except Exception as error:
                shortage, reason = self.met(error)
            # Outside of the clause above: what its traceback holds is free now.
            verdict = self.settle(shortage, reason)
            if verdict is None:
                return cast(T, found)
            del found
            self.go_down(verdict.shortage, step, verdict.reason)

    def met(self, error: Exception) -> tuple[Shortage | None, str]:
        """Which memory `error` says is short, with the reason; None if that of another rank. No shortage: it is raised."""
        if isinstance(error, ElsewhereError):
            return None, ""
        shortage = shortage_of(error)
        if shortage is None:
            raise error
        return shortage, first_line(error)

    def settle(
        self, shortage: Shortage | None, reason: str, *, is_changed: Callable[[], bool] = lambda: False
    ) -> Verdict | None:
        """What all ranks met, of which this one met `shortage`; None if nobody is short. See `Votes.settle`.

        StartAgainError where the others can't be told, because they wait within a forward.
        """
        if shortage is not None and self.votes.talks_within:
            self.start_again(shortage, reason)
        return self.votes.settle(shortage, reason, is_changed=is_changed)

    def start_again(self, shortage: Shortage, reason: str) -> NoReturn:
        """Keep the shortage, and raise StartAgainError; RunError where the next start would do the same again."""
        if shortage != "vram" or not self._ladder.keep_for_next(self.choice):
            raise RunError(_give_up(shortage, reason))
        raise StartAgainError(
            f"The GPU's memory ran out ({reason}): the run starts again from the last checkpoint, with a plan that takes less.",
            about=START_AGAIN,
        )

    def can_go_down(self, shortage: Shortage) -> bool:
        """Whether a plan takes less."""
        return self._ladder.step_down(self.choice, shortage) is not None

    def go_down(self, shortage: Shortage, step: int | None, reason: str) -> None:
        """To the next plan that takes less, which is told. RunError if there is none."""
        at_failure = self._memory()
        gc.collect()  # a graph that was broken off may hang in cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        failed, lower = self.choice, self._ladder.step_down(self.choice, shortage)
        if lower is None:
            raise RunError(_give_up(shortage, reason))
        self.choice = lower
        what = "The GPU's memory" if shortage == "vram" else "The main memory"
        difference = changed(failed.plan, lower.plan) or "less kept for the smaller sizes"
        when = "while the model was loaded" if step is None else f"at step {step + 1}"
        tell_choice(
            self._events,
            lower,
            f"{what} ran out {when}: the run goes on with {difference}. The result does not change; no "
            f"step is lost. {self._ladder.explain(lower)}",
            step=step or 0,
            shortage={"reason": reason, "at_failure": at_failure, "once_freed": self._memory()},
        )

    def _memory(self) -> dict[str, int]:
        """Bytes of the GPU that this process holds and the driver has free; nothing on a CPU."""
        if self._device.type != "cuda":
            return {}
        free, _total = torch.cuda.mem_get_info(self._device)
        allocated, reserved = torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device)
        return {"allocated": allocated, "reserved": reserved, "free": free}


def tell_choice(events: Events, choice: Choice, message: str, **fields: Any) -> None:
    """Write a plan into the diary, with what it is expected to take in bytes and in seconds a step."""
    events.write(
        "plan",
        **fields,
        plan=asdict(choice.plan),
        keep_attention={str(tokens): count for tokens, count in choice.keep_attention.items()},
        keep_linears={str(tokens): count for tokens, count in choice.keep_linears.items()},
        offload_linears={str(tokens): count for tokens, count in choice.offload_linears.items()},
        vram=choice.vram,
        ram=choice.ram,
        seconds=round(choice.seconds, 4),
        beside=choice.beside.told(),
        start_seconds=round(choice.start_seconds, 2),
        sizes_seconds=round(choice.sizes_seconds, 2),
        sizes={
            str(tokens): {
                "share": round(size.share, 4),
                "seconds": round(size.seconds, 4),
                "first_seconds": round(size.first, 3),
            }
            for tokens, size in choice.sizes.items()
        },
        message=message,
    )


class _Untouched:
    """Weights and optimizer state as an attempt found them, told by torch's counters of changes in place."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = {parameter for parameter, state in optimizer.state.items() if state}
        self._versions = self._count()

    @property
    def is_changed(self) -> bool:
        """Whether the update had begun."""
        now = self._count()
        return any(now.get(key) != version for key, version in self._versions.items())

    def restore(self, step: int) -> None:
        """Forget state that the attempt made. RunError if it has changed what was there: the update had begun."""
        if self.is_changed:
            raise RunError(
                f"Memory ran out in the middle of the update that follows step {step}, when some weights were changed "
                "already: start the run again to go on from the last checkpoint.",
                about=START_AGAIN,
            )
        for parameter in set(self._optimizer.state) - self._parameters:
            del self._optimizer.state[parameter]

    def _count(self) -> dict[int, int]:
        weights = [p for group in self._optimizer.param_groups for p in group["params"]]
        known = [state for p, state in self._optimizer.state.items() if p in self._parameters]
        states = [value for state in known for value in state.values() if isinstance(value, torch.Tensor)]
        return {id(tensor): num_changes(tensor) for tensor in (*weights, *states)}


class Recovery:
    """Does a step again that ran out of memory, each time with a leaner plan: `trainer.attempt = recovery.attempt`."""

    def __init__(self, descent: Descent, *, apply: Callable[[Choice], None], optimizer: torch.optim.Optimizer):
        """`apply` puts a choice on the model in the place of the present one, after whatever point a step broke off at.

        It keeps the adapter's parameters as they are, and may itself run out of memory.
        """
        self._descent = descent
        self._apply = apply
        self._optimizer = optimizer
        self._least_ram: Choice | None = None  # none takes less main memory

    def attempt(self, act: Callable[[], T], step: int) -> T:
        """What `act` returns, which is done after `step` updates. RunError if the last plan does not suffice."""
        self._watch_ram(step)
        while True:
            before = _Untouched(self._optimizer)
            found, verdict = None, None
            # Apart from the act, in which other ranks may wait for this one.
            for part in (self._make_state, act) if lacks_state(self._optimizer) else (act,):
                found, verdict = self._try(part, before)
                if verdict is not None:
                    break
            if verdict is None:
                return cast(T, found)
            found = None
            self._optimizer.zero_grad(set_to_none=True)
            if verdict.is_changed and not self._descent.votes.is_alone:
                self._descent.start_again(verdict.shortage, verdict.reason)
            before.restore(step)
            self._go_down(verdict.shortage, step, verdict.reason)

    def _try(self, act: Callable[[], object], before: _Untouched) -> tuple[object, Verdict | None]:
        """What `act` returns, and whether any rank was short of memory for it."""
        found, shortage, reason = None, None, ""
        try:
            found = act()
        except Exception as error:
            shortage, reason = self._descent.met(error)
        # Outside of the clause above, as in `Descent.reach`.
        return found, self._descent.settle(shortage, reason, is_changed=lambda: before.is_changed)

    def _make_state(self) -> None:
        make_state(self._optimizer)

    def _go_down(self, shortage: Shortage, step: int, reason: str) -> None:
        self._descent.go_down(shortage, step, reason)
        self._descent.reach(self._apply, step)

    def _watch_ram(self, step: int) -> None:
        """Step down before the system runs out of main memory, if a plan takes less of it."""
        choice = self._descent.choice
        is_low = choice is not self._least_ram and _free_ram() < LOW_RAM
        if not self._descent.votes.any(is_low):
            return
        if not self._descent.can_go_down("ram"):
            self._least_ram = choice
            return
        self._optimizer.zero_grad(set_to_none=True)
        self._go_down("ram", step, f"less than {LOW_RAM / 2**30:.0f} GiB of main memory is free")


def lacks_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `make_state` has something to do."""
    if getattr(optimizer, "init_state", None) is None:
        return False
    return any(p not in optimizer.state for group in optimizer.param_groups for p in group["params"])


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let bitsandbytes make the state that is missing, before any update.

    It makes it parameter by parameter between updates; torch's optimizers make all of it first, and their fused kernels
    allocate nothing. With the state there, an update either is done or leaves everything as it was.
    """
    if not lacks_state(optimizer):
        return
    init_state: Callable[..., None] = optimizer.init_state  # type: ignore[attr-defined]
    with torch.no_grad():
        for group_index, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                if not optimizer.state[parameter]:
                    init_state(group, parameter, group_index, index)


def _give_up(shortage: Shortage, reason: str) -> str:
    advice = f"use fewer frames, a smaller size, {label('batch_size')} 1, or a lower precision"
    if shortage == "ram":
        source = option_of("stream_from")
        all_of_them = f"all: {source.label} {source.widget.shows('mapped') if source.widget else 'mapped'}"
        advice = (
            f"close other programs, swap fewer blocks, or have more of them memory-mapped ({label('mapped_blocks')}; "
            f"{all_of_them})"
        )
    what = "The GPU" if shortage == "vram" else "The machine"
    return f"{what} ran out of memory, and there is no plan that takes less ({reason}): {advice}; the last checkpoint is kept."


def first_line(error: BaseException) -> str:
    """What `error` says, shortened, without the full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")


def _free_ram() -> int:
    try:
        return available_ram()
    except OSError:  # a system that does not say
        return LOW_RAM
