"""What a planner chooses: a plan, and what is expected of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..memory.recompute import Kept
from .beside import NOTHING, BesideSteps
from .estimate import Estimate
from .plan import Bucket, Plan


@dataclass(frozen=True)
class Limits:
    """Bytes that a plan may take."""

    vram: int
    ram: int
    pinned: int

    def have_ram(self, plan: Plan, ram: int, held_ram: int, moved: int = 0) -> bool:
        """Whether main memory suffices for a plan that takes `ram`, also for what of it is pinned: `moved`, and held blocks."""
        pinned = held_ram if plan.stream_from == "pinned" else 0
        return ram <= self.ram and pinned + moved <= self.pinned


@dataclass(frozen=True)
class SizeTime:
    """Share and time of the steps with clips of one size."""

    share: float  # of all steps
    seconds: float  # of each
    first: float  # how much longer the first one takes
    tokens: int = 0  # of each batch, in the copies in which it goes through the model


@dataclass(frozen=True)
class Choice:
    """A plan with what it is expected to take: the peaks over all sizes of clips, and the mean time of a step.

    A run takes `start_seconds` beside its steps: before the first and after the last. The first step of each size takes
    longer than those after it; `sizes_seconds` is how much longer, for all sizes together. Where the run hands the device to
    another one every `switch_every` steps, each time it takes `switch_seconds` to come back. `beside`:
    what comes between steps, such as previews.
    """

    plan: Plan  # as the size that takes most has it
    kept: Mapping[int, Kept]  # by the tokens of a batch
    vram: int
    ram: int
    seconds: float
    estimates: Mapping[Bucket, Estimate] = field(default_factory=dict[Bucket, Estimate])
    start_seconds: float = 0.0
    sizes_seconds: float = 0.0
    sizes: Mapping[int, SizeTime] = field(
        default_factory=dict[int, SizeTime]
    )  # by the tokens of a step, as it tells them
    switch_every: int = 0
    switch_seconds: float = 0.0
    beside: BesideSteps = NOTHING

    def run_seconds(self, steps: int) -> float:
        """From the start of the process to the LoRA."""
        steady = steps * self.seconds + self.all_switches(steps)
        return self.start_seconds + self.sizes_seconds + steady + self.beside.total

    def all_switches(self, steps: int) -> float:
        """Seconds that so many steps lose by handing the device over."""
        return self.switch_seconds * (max(steps - 1, 0) // self.switch_every) if self.switch_every else 0.0

    @property
    def keep_attention(self) -> dict[int, int]:
        """By the tokens of a batch."""
        return {tokens: kept.attention for tokens, kept in self.kept.items()}

    @property
    def keep_linears(self) -> dict[int, int]:
        """By the tokens of a batch."""
        return {tokens: kept.linears for tokens, kept in self.kept.items()}

    @property
    def offload_linears(self) -> dict[int, int]:
        """By the tokens of a batch."""
        return {tokens: kept.moved for tokens, kept in self.kept.items()}

    @property
    def held_ram(self) -> int:
        """Bytes of main memory that are held all the time."""
        return max(one.exact_ram for one in self.estimates.values())

    def fits_ram(self, limits: Limits) -> bool:
        """Whether main memory suffices."""
        return limits.have_ram(self.plan, self.ram, self.held_ram)
