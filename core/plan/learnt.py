"""What runs teach the next ones on the same machine: rates, corrections, shortages, and what is beside the steps.

All of it lies in the scratch folder, may be deleted, and is wrong at worst, never in the way: what cannot be written is
measured again.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

import torch

from ..adapters.peft_hooks import finish_importing_adapters
from ..errors import RunError
from ..memory.by_size import kept_for
from ..settings.job import Job
from .card import Card, corrected, learnt_path, read_correction, write_correction
from .choice import Choice
from .constants import constants
from .decision import Decision
from .estimate import pinned_ram
from .host import busy_seconds
from .kept import predictions_version
from .measure import MeasuredStep, Peak, correction_kind
from .overhead import measure_overhead
from .plan import ONE_GPU, Gpus, is_graphed, keeping
from .planner import STEP_DOWN, Planner
from .planning import make_planner
from .probe import DeviceProbe, keep_overhead, probe, version_of
from .run_costs import (
    GRAPH,
    RunCosts,
    assumed_kind,
    key,
    kinds_of_block,
    learnt,
    learnt_beside,
    learnt_end,
    read_costs,
    write_costs,
)
from .shortages import Met, kind_of, read_met, write_met

log = logging.getLogger(__name__)
SAME = 0.97  # of the memory that was free: less is missing because of another program


@dataclass(frozen=True)
class Learnt:
    """What is known of `device`, in `folder`. `others`: bytes of it that were in use before this process used it.

    `ranks`: how many train together, which makes a run one of another kind.
    """

    device: torch.device
    folder: Path
    others: int | None = None
    ranks: int = 1

    @cached_property
    def version(self) -> str:
        """Of all that what is learnt depends on: card, driver, packages, and what is predicted."""
        return f"{version_of(self.device)}; predictions {predictions_version()}"

    def probe(self, decision: Decision) -> DeviceProbe:
        """The device for this run: measured where it is not known yet, its memory as it is now."""
        found = probe(self.device, decision.attention, self.folder, first=finish_importing_adapters)
        is_known = found.is_known and decision.is_known
        return replace(found, card=self._with_overhead(found.card), is_known=is_known)

    def planner(self, job: Job, decision: Decision, probe: DeviceProbe, gpus: Gpus = ONE_GPU) -> Planner:
        """For the job over `gpus`, with its options and all that earlier runs have shown."""
        planner = make_planner(job, decision, probe.card, gpus)
        costs = read_costs(self._costs_path(planner.card), self.version)
        return replace(
            planner,
            corrections={
                mode: read_correction(self.folder, planner.card, correction_kind(planner, mode), self.version)
                for mode in decision.modes
            },
            costs=replace(costs, file_bytes=planner.costs.file_bytes, is_probed=probe.is_known),
            version=self.version,
            met=read_met(self._shortages_path(planner), _kind(job, planner, self.ranks), self.version),
        )

    def remember_shortage(self, job: Job, planner: Planner, failed: Choice, lower: Choice, free: int) -> Planner:
        """`planner`, which knows that `failed` was too much of `free` bytes and `lower` came next; kept for the next run.

        Unless another program has taken of them meanwhile.
        """
        if planner.card.free < SAME * free:
            return planner
        met = planner.met
        if failed.plan.cuda_graphs != lower.plan.cuda_graphs:
            met = replace(met, graphs=False)
        else:
            met = met.after(failed.vram, max(int(failed.vram * STEP_DOWN), lower.vram), free)
        self._write_met(job, planner, met)
        return replace(planner, met=met)

    def remember_success(self, job: Job, planner: Planner, choice: Choice) -> None:
        """A run came to its end with `choice`: what it took is no shortage any more."""
        if planner.met.is_refuted(choice.vram, planner.card.free):
            self._write_met(job, planner, Met(graphs=planner.met.graphs))
        if self.ranks > 1:  # the links between them take memory, too
            return
        overhead = measure_overhead(self.device, self.others)  # now that all kernels are loaded
        if overhead is not None:
            with suppress(RunError):
                keep_overhead(self.folder, self.device, overhead)

    def remember_costs(self, planner: Planner, costs: RunCosts) -> None:
        """What was beside the steps of a run."""
        with suppress(RunError):
            write_costs(self._costs_path(planner.card), self.version, costs)

    def remember_beside(
        self,
        planner: Planner,
        choice: Choice,
        end: float | None,
        *,
        validations: Sequence[float],
        previews: Sequence[float],
    ) -> None:
        """A run had its LoRA `end` seconds after its last step, and these took so long under `choice`."""
        path = self._costs_path(planner.card)
        costs = read_costs(path, self.version)
        costs = costs if end is None else learnt_end(costs, end)
        costs = learnt_beside(costs, choice.beside, planner.costs, validations=validations, previews=previews)
        with suppress(RunError):
            write_costs(path, self.version, costs)

    def _with_overhead(self, card: Card) -> Card:
        """`card` with what this process takes beside tensors, all libraries loaded; some of it may be in use already."""
        if self.device.type != "cuda":
            return card
        now = measure_overhead(self.device, self.others, ranks=self.ranks)
        overhead = max(card.overhead, now or 0) or constants().overhead_vram
        return replace(card, overhead=overhead, free=card.free - max(overhead - (now or overhead), 0))

    def _write_met(self, job: Job, planner: Planner, met: Met) -> None:
        try:
            write_met(self._shortages_path(planner), _kind(job, planner, self.ranks), self.version, met)
        except RunError as error:
            log.warning("That memory ran out is not kept for the next run: %s", error)

    def _shortages_path(self, planner: Planner) -> Path:
        path = learnt_path(self.folder, planner.card)
        return path.with_name(f"shortages-{path.name}")

    def _costs_path(self, card: Card) -> Path:
        path = learnt_path(self.folder, card)
        return path.with_name(f"costs-{path.name}")


class LearnCosts:
    """A callback: what the start and the first step of each size took, against what was assumed of them."""

    def __init__(
        self,
        learnt: Learnt,
        planner: Planner,
        choice: Callable[[], Choice],
        *,
        steps: int,
        peak: Peak,
        is_first_turn: bool,
    ) -> None:
        """`steps` of the run; `peak`: as `Measure` has it.

        `is_first_turn`: the process did not wait for another run before it started.
        """
        self._learnt, self._planner, self._choice = learnt, planner, choice
        self._started = choice()
        self._steps, self._peak = steps, peak
        self._start: float | None = None
        self._is_first_turn, self._is_first = is_first_turn, True
        self._seconds: dict[int, list[float]] = {}

    def needs_weights(self, _trainer: object) -> bool:
        return False

    def __call__(self, _trainer: object, report: MeasuredStep) -> None:
        if self._is_first:
            self._is_first = False
            age = busy_seconds()
            if age is not None and report.step == 1 and self._is_first_turn:
                self._start = max(age - report.seconds, 0.0)
        self._seconds.setdefault(report.tokens, []).append(report.seconds)
        if report.step == self._steps and self._choice() is self._started:
            self._write()

    def _write(self) -> None:
        if len(self._planner.buckets) > 1:  # of one size `Measure` knows more
            self._correct_predictions()
        planner, plan = self._planner, self._started.plan
        layers = planner.task.sizes.num_layers
        graph = GRAPH if is_graphed(planner.task, plan) else 0.0
        extras: list[tuple[float, float]] = []
        keys: list[str] = []
        for number, (tokens, seconds) in enumerate(self._seconds.items()):
            size = self._started.sizes.get(tokens)
            if size is None:  # the smaller last batch of an epoch, or batches of several sizes
                continue
            kept = kept_for(self._started.kept, size.tokens)
            kept_plan = keeping(plan, kept)
            found = [key(plan, size.tokens, kind) for kind in kinds_of_block(kept_plan, layers)]
            keys += found
            # The run's very first step has more to do, and one whose results go to main memory pins the buffers for them.
            if number and len(seconds) > 1 and not kept.moved:
                assumed = sum(assumed_kind(plan.compile, again=kind in planner.costs.compiled) for kind in found)
                extras.append((seconds[0] - median(seconds[1:]) - graph, assumed))
        pinned = pinned_ram(planner.task, plan)
        costs = learnt(planner.costs, start=self._start, compile=plan.compile, extras=extras, keys=keys, pinned=pinned)
        self._learnt.remember_costs(planner, costs)

    def _correct_predictions(self) -> None:
        """Of time, by the sizes that came more than once; of memory, where all sizes have come."""
        planner, choice = self._planner, self._started
        one_kind = len({bucket.passes for bucket in planner.buckets}) == 1
        middle = median if one_kind else fmean  # of steps that take unlike passes, the time expected is the mean
        later = {tokens: middle(seconds[1:]) for tokens, seconds in self._seconds.items() if len(seconds) > 2}
        shares = {tokens: choice.sizes[tokens].share for tokens in later if tokens in choice.sizes}
        expected = sum(share * choice.sizes[tokens].seconds for tokens, share in shares.items())
        if not expected:
            return
        seconds = sum(share * later[tokens] for tokens, share in shares.items()) / expected
        peak, memory = self._peak(), None
        if peak is not None and choice.sizes.keys() <= self._seconds.keys():
            exact = next(iter(choice.estimates.values())).exact_vram
            memory = max(peak - exact, 1) / (choice.vram - exact)
        correction = corrected(planner.correction_of(choice.plan), memory=memory, seconds=seconds)
        with suppress(RunError):
            kind = correction_kind(planner, choice.plan.compile)
            write_correction(self._learnt.folder, planner.card, kind, planner.version, correction)


def _kind(job: Job, planner: Planner, ranks: int) -> str:
    shapes = {bucket.shape: bucket.batch for bucket in planner.buckets}
    kind = kind_of(planner.task, shapes, planner.plan.precision, job.memory.budget_gb)
    return kind if ranks == 1 else f"{kind}; {ranks} GPUs"
