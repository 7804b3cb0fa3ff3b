"""The groups of options that a stage is trained with: one list, which the settings and the frozen job share."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from .adapter import AdapterOptions
from .crepa import CrepaOptions
from .ema import EmaOptions
from .loop import LoopOptions
from .loss import LossOptions
from .memory import MemoryOptions
from .optimizer import OptimizerOptions
from .option import Options
from .parallel import ParallelOptions
from .previews import PreviewOptions
from .regularizers import RegularizerOptions
from .rollout import RolloutOptions
from .saving import SavingOptions
from .schedule import ScheduleOptions
from .timesteps import TimestepOptions
from .tread import TreadOptions


@dataclass(frozen=True, kw_only=True)
class Groups:
    """One group of options a field. A new group is added here, and is then part of node, recipe, documents and job."""

    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    timesteps: TimestepOptions = field(default_factory=TimestepOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    previews: PreviewOptions = field(default_factory=PreviewOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    regularizers: RegularizerOptions = field(default_factory=RegularizerOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    tread: TreadOptions = field(default_factory=TreadOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    crepa: CrepaOptions = field(default_factory=CrepaOptions)
    saving: SavingOptions = field(default_factory=SavingOptions)

    def groups(self) -> Iterator[tuple[str, Options]]:
        """Name and value of each."""
        for item in fields(Groups):
            yield item.name, getattr(self, item.name)
