"""The plan of a run that shall give the same bits each time: kept in its folder, for the process that goes on with it.

Which attention is fastest and how much memory is free are found out anew at each start, and another answer is another plan,
whose sums are rounded in other places.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..disk import write_atomic
from ..errors import ConfigError, RunError
from ..memory.recompute import Kept
from ..plan.decision import Decision
from ..plan.plan import Plan
from ..safe_json import parse_object, seal, unseal
from ..serial import from_dict, to_dict
from ..settings.job import Job
from ..settings.memory import MemoryOptions

FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class KeptPlan:
    """A plan, and all else that was found out rather than said."""

    version: str  # what the bits depend on beside it: card, driver, packages, number of GPUs
    options: MemoryOptions  # the job's
    attention: str  # its kind; "": PyTorch's own
    joined: int  # batches of a step that go through the model together
    graphs: bool  # CUDA graphs are worth their memory
    plan: Plan
    by_size: tuple[tuple[int, int, int], ...] = ()  # tokens of a batch, and the blocks that then keep something: `Kept`

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
        if self != other:
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
        by_size=tuple((tokens, each.attention, each.linears) for tokens, each in sorted(kept.items())),
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
