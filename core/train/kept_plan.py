"""The plan of a run that shall give the same bits each time: kept in its folder, for the process that goes on with it.

Which attention is fastest and how much memory is free are found out anew at each start, and another answer is another plan,
whose sums are rounded in other places.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..disk import write_atomic
from ..errors import ConfigError, RunError
from ..memory.recompute import Kept
from ..parallel.world import World
from ..plan.choice import Choice
from ..plan.decision import Decision
from ..plan.plan import Plan
from ..plan.probe import version_of
from ..safe_json import parse_object, seal, unseal
from ..serial import from_dict, to_dict
from ..settings.job import Job
from ..settings.memory import MemoryOptions
from .run_folder import RunFolder

FILE = "plan.json"
_KERNELS = 2  # raised when our kernels come to round otherwise
_OTHER_BITS = (
    "deterministic: {}. The run goes on, but from here on it differs by rounding from one that was never stopped."
)
_UNKNOWN = f"it has steps without the option, or its {FILE} is missing or damaged"


@dataclass(frozen=True, kw_only=True)
class KeptPlan:
    """A plan, and all else that was found out rather than said."""

    version: str  # what the bits depend on beside it: card, driver, packages, number of GPUs
    options: MemoryOptions  # the job's
    attention: str  # its kind; "": PyTorch's own
    joined: int  # batches of a step that go through the model together
    graphs: bool  # CUDA graphs are worth their memory
    plan: Plan
    by_size: tuple[tuple[int, ...], ...] = ()  # tokens of a batch, and the blocks that then keep something: `Kept`

    @property
    def kept(self) -> dict[int, Kept]:
        """By the tokens of a batch."""
        return {tokens: Kept(*numbers) for tokens, *numbers in self.by_size}

    def asked(self, job: Job) -> Job:
        """The job, with this kind of attention asked for in the place of the fastest."""
        return replace(job, memory=replace(job.memory, attention=self.attention or "default"))  # type: ignore[arg-type]

    def settled(self, decision: Decision) -> Decision | None:
        """`decision` as it was; None if blocks can't run so here any more."""
        if self.plan.compile not in decision.modes:
            return None
        return replace(
            decision, modes=(self.plan.compile,), attention=self.attention, joined=self.joined, graphs=self.graphs
        )

    def difference(self, other: "KeptPlan") -> str:
        """Why bits under `other` are no longer those of this one, as a clause; "" if they are."""
        if self.version != other.version:
            return f"it was begun on {self.version}, and this is {other.version}"
        if self.options != other.options:
            one, two = to_dict(self.options), to_dict(other.options)
            return f"other options were chosen since it was begun ({', '.join(n for n in one if one[n] != two[n])})"
        if replace(self, by_size=()) != replace(other, by_size=()) or self.kept != other.kept:
            return "its plan is another one than before"
        return ""


def describe(job: Job, decision: Decision, plan: Plan, kept: Mapping[int, Kept], version: str) -> KeptPlan:
    """What a run computes with now."""
    return KeptPlan(
        version=version,
        options=job.memory,
        attention=decision.attention,
        joined=decision.joined,
        graphs=decision.graphs,
        plan=plan,
        by_size=tuple((tokens, *each) for tokens, each in sorted(kept.items())),
    )


def read_kept_plan(folder: Path) -> KeptPlan | None:
    """That of a run's folder; None where there is none, or damage."""
    try:
        return from_dict(KeptPlan, unseal(parse_object((folder / FILE).read_bytes())))
    except (OSError, ValueError, ConfigError):
        return None


def write_kept_plan(folder: Path, kept: KeptPlan) -> None:
    """RunError if the disk refuses."""
    text = json.dumps(seal(to_dict(kept)), indent=1) + "\n"
    write_atomic(folder / FILE, lambda file: file.write(text.encode()))


def forget_kept_plan(folder: Path) -> None:
    """The next start chooses anew."""
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


def copy_kept_plan(source: Path, target: Path) -> None:
    """Into the folder of a run that starts from a checkpoint of another. Without it the plan is chosen anew."""
    kept = read_kept_plan(source)
    if kept is not None:
        with suppress(RunError):
            write_kept_plan(target, kept)


class PlanOfBefore:
    """What a run that is asked for the same bits takes from the process before, and keeps for the next; else nothing."""

    def __init__(
        self, job: Job, device: torch.device, folder: Path, *, world: World, warn: Callable[[str], object]
    ) -> None:
        """`folder`: the run's. `warn`: tells once where its bits become others."""
        self._job, self._world, self._warn = job, world, warn
        self._folder = folder if job.memory.deterministic else None
        if self._folder is None and world.is_first:
            forget_kept_plan(folder)  # from here on the bits are any
        cards = sorted(set(world.tell(version_of(device))))  # the same on every rank: all take the plan, or none
        # What the bits depend on beside options and plan.
        self._made_by = " and ".join(cards) + f", version {_KERNELS} of our kernels" + _spread(job, world)
        before = read_kept_plan(folder) if self._folder is not None and world.is_first else None
        self._before = world.from_first(before)
        is_same = (
            self._before is not None
            and self._before.version == self._made_by
            and self._before.options == self._job.memory
            and len(cards) == 1  # else what one has, another need not
        )
        is_chosen = device.type == "cuda" or bool(job.memory.budget_gb)  # and not the job's alone
        self._is_unknown = is_chosen and self._before is None and bool(RunFolder(folder).checkpoints())
        self.held = self._before if is_same else None  # the plan, if it can be taken again

    def asked(self, job: Job) -> Job:
        """The job, with the attention of before asked for."""
        return job if self.held is None else self.held.asked(job)

    def settled(self, decision: Decision) -> Decision:
        """As it was before; where that can't be any more, `decision`, and the plan of before is let go."""
        found = None if self.held is None else self.held.settled(decision)
        if found is None:
            self.held = None
            return decision
        return found

    def keep(self, decision: Decision, choice: Choice) -> None:
        """For the next process. Where it is not what was there, that is told."""
        if self._folder is None or not self._world.is_first:
            return
        now = describe(self._job, decision, choice.plan, choice.kept, self._made_by)
        difference = _UNKNOWN if self._is_unknown else "" if self._before is None else self._before.difference(now)
        if difference:
            self._warn(_OTHER_BITS.format(difference))
        if self._before != now:
            write_kept_plan(self._folder, now)
        self._before, self._is_unknown = now, False

    def forget(self, why: str) -> None:
        """The next process chooses anew."""
        if self._folder is not None:
            forget_kept_plan(self._folder)
            self._warn(_OTHER_BITS.format(why))


def _spread(job: Job, world: World) -> str:
    """How a run is spread, which its memory options do not say, and for which its plan was chosen."""
    if world.size > 1:
        base = "spread over them" if job.parallel.base == "sharded" else "whole"
        return f", {world.size} GPUs, {world.context} for each clip, base {base}"
    return ", in turns with another run" if job.alternate_every else ""
