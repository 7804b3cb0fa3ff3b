"""How one run is spread over several GPUs: each trains clips of its own, or some share each clip (context parallel).

`choose_context` is asked before the start, by who makes the job, and by a worker that was started without an answer. It takes
the way with the shortest time for a batch, among those that fit: clips of their own as a rule, since nothing is exchanged then.
Shared clips where one does not fit on one GPU, where it would fit only with block swap that takes longer than the exchange,
and where there are fewer batches than GPUs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import ConfigError
from ..memory.precision import AUTO, needs_adapter, precision_kind
from ..parallel.parts import check_grid, check_heads
from ..settings.job import Job
from ..settings.parallel import ParallelOptions
from ..wan.checkpoint import CheckpointInfo
from .advice import clip_name
from .card import Card
from .constants import constants
from .decision import Decision, buckets_of, for_context, wanted_modes
from .link import read_link
from .plan import Gpus
from .planner import Planner
from .planning import make_planner
from .probe import device_path, read_remembered, version_of
from .words import label

_MUCH = 1.3
GAIN = 1.05  # by which a way that exchanges more must be faster
# What is assumed of a GPU that was not measured: an RTX 4090's rates. Only their relations count here.
ASSUMED = {
    "matmul": 160e12, "matmul_fp32": 60e12, "attention": 120e12, "bandwidth": 900e9, "to_device": 20e9, "staged": 8e9
}  # fmt: skip
_ASSUMED_RAM = 256 * 2**30


@dataclass(frozen=True)
class Spread:
    """How the GPUs of a run train it, and why."""

    gpus: Gpus
    shards: int  # GPUs over which the frozen base lies spread; 1: each has all of it
    why: str  # a sentence for people

    def settle(self, parallel: ParallelOptions) -> ParallelOptions:
        """The options with what was left to be chosen."""
        base = "sharded" if self.shards > 1 else "whole"
        return replace(parallel, context=self.gpus.context, base=base if parallel.base == "auto" else parallel.base)


@dataclass(frozen=True)
class _Way:
    gpus: Gpus
    shards: int
    seconds: float  # for each batch; infinite where it does not fit


def choose_context(
    job: Job,
    info: CheckpointInfo,
    count: int,
    *,
    device: torch.device,
    folder: Path | None = None,
    machine: int = 0,
    batches: int = 0,
    card: Card | None = None,
) -> Spread:
    """How `count` GPUs train the job, `machine` of them in each machine (0: all in one).

    `info` is of the job's model. `device`: one of the GPUs, of which only what `folder`, the runs' scratch folder, holds of it
    and the size of its memory are asked for; nothing is allocated. `batches` of a step, where they can't be made as many as
    the GPUs need. `card`: what the GPUs can do, where that was measured. ConfigError for a `parallel.context` that can't be.
    """
    machine = machine or count
    if count == 1:
        return Spread(Gpus(), 1, "")
    asked = job.parallel
    if asked.context:
        _check_fixed(job, info, count)
        fixed = Gpus(count, asked.context)
        ways = _ways(job, info, [fixed], machine, device, card or _known_card(device, folder, count))
        return Spread(fixed, _best(ways).shards, f"{_said(fixed)}, as {label('context')} has it.")
    possible = [Gpus(count, context) for context in _contexts(job, info, count, machine)]
    ways = _ways(job, info, possible, machine, device, card or _known_card(device, folder, count))
    return _choose(job, ways, batches)


def run_seconds(
    job: Job, info: CheckpointInfo, count: int, *, device: torch.device, folder: Path | None, card: Card | None = None
) -> tuple[float, int] | None:
    """Seconds that the run is expected to take on `count` GPUs of one machine, and how many share each clip for that.

    With as many batches a step as the job has. Arguments as those of `choose_context`. None where nothing is known of the
    device; infinite where the job fits in no way.
    """
    card = card or _known_card(device, folder, count)
    if card is None:
        return None
    found = [(float("inf"), 1)]
    for context in _contexts(job, info, count, count):
        gpus = Gpus(count, context)
        planner = make_planner(job, _assumed_decision(job, info, device, gpus), card, gpus)
        for shards in _bases(job, count):
            choice = replace(planner, plan=replace(planner.plan, shards=shards)).choose()
            found += [(choice.run_seconds(job.loop.steps), context)] if choice else []
    return min(found)


def _bases(job: Job, machine: int) -> tuple[int, ...]:
    """GPUs that the frozen base may lie spread over."""
    return {"whole": (1,), "sharded": (machine,), "auto": (1, machine)}[job.parallel.base]


def _choose(job: Job, ways: Sequence["_Way"], batches: int) -> Spread:
    """The best of the ways that have a batch for each of the GPUs, or for each group of them."""
    step, least = batches or max(way.gpus.side_by_side for way in ways), ways[0]
    limit = min(batches or step, sum(math.ceil(bucket.share) for bucket in buckets_of(job)))  # batches of an epoch
    left = [way for way in ways if way.gpus.side_by_side <= limit] or [ways[-1]]
    chosen = _best(left, step)
    if not batches and least.seconds < GAIN * chosen.seconds:  # it may train a clip twice in a step, at two noises
        chosen, left = _best([least, *left], step), ways
    return Spread(chosen.gpus, chosen.shards, _reason(job, least, chosen, _few(limit, batches), least in left))


def _few(limit: int, batches: int) -> str:
    counted = "1 batch" if limit == 1 else f"{limit} batches"
    return f"a step has {counted}" if limit == batches else f"the dataset has {counted} an epoch"


def _best(ways: Sequence["_Way"], step: int = 0) -> "_Way":
    """The fastest; of those that hardly differ, the one that exchanges least. If none fits, the one that takes least."""

    def cost(way: _Way) -> float:
        rounds = -(-step // way.gpus.side_by_side) / step if step else 1.0
        return way.seconds * rounds

    best = ways[0]
    for way in ways[1:]:
        if cost(way) * GAIN < cost(best) or (cost(best) == cost(way) == float("inf")):
            best = way
    return best


def _reason(job: Job, least: "_Way", chosen: "_Way", few: str, is_left: bool) -> str:
    """`least`: the way that exchanges least. `is_left`: there were enough batches for it, else as `few` says."""
    said = _said(chosen.gpus)
    if chosen.seconds == float("inf"):
        return f"{said}: by what is known before the start, not even that suffices for {_largest(job)}."
    if chosen.gpus == least.gpus:
        return f"{said}."
    if not is_left:
        return f"{said}: {few}, fewer than GPUs."
    if least.seconds == float("inf"):
        return f"{said}: {_largest(job)} does not fit on one GPU."
    return f"{said}: faster than clips of their own, since less has to be swapped or computed again."


def _said(gpus: Gpus) -> str:
    if gpus.context == 1:
        return f"{gpus.count} GPUs: each trains clips of its own"
    if gpus.context == gpus.count:
        return f"{gpus.count} GPUs share each clip"
    return f"{gpus.count} GPUs: {gpus.context} share each clip, {gpus.side_by_side} clips at a time"


def _largest(job: Job) -> str:
    bucket = max(buckets_of(job), key=lambda bucket: bucket.batch * bucket.shape[1] * bucket.shape[2] * bucket.shape[3])
    return clip_name(bucket.shape) + (f" in a batch of {bucket.batch}" if bucket.batch > 1 else "")


def _contexts(job: Job, info: CheckpointInfo, count: int, machine: int) -> list[int]:
    """Numbers of GPUs that can share a clip, all of one machine; the least first."""
    return [
        context
        for context in range(1, machine + 1)
        if count % context == 0 and machine % context == 0 and _problem(job, info, context) is None
    ]


def _problem(job: Job, info: CheckpointInfo, context: int) -> ConfigError | None:
    try:
        check_whole_clips(job, context)
        check_heads(info.config.num_heads, context)
        check_grid(least_frame(job, info), context)
    except ConfigError as error:
        return error
    return None


def check_whole_clips(job: Job, context: int) -> None:
    """ConfigError where `context` GPUs would share each clip, and something has to see all its tokens."""
    if context > 1 and job.crepa.weight:
        raise ConfigError(
            f"context_parallel is {context}, but CREPA looks at whole frames, of which GPUs that share clips have a part: set "
            "context_parallel to 1, or crepa_weight to 0."
        )
    if context > 1 and job.tread.routes:
        raise ConfigError(
            f"context_parallel is {context}, but tread_routes leaves tokens of each clip out, which GPUs that share clips "
            "can't: set context_parallel to 1, or tread_routes to nothing."
        )


def least_frame(job: Job, info: CheckpointInfo) -> int:
    """Tokens of a frame, of the job's smallest clips."""
    _, height, width = info.config.patch_size
    return min((shape[2] // height) * (shape[3] // width) for shape in (sample.shape for sample in job.data.samples))


def _check_fixed(job: Job, info: CheckpointInfo, count: int) -> None:
    context = job.parallel.context
    if count % context:
        raise ConfigError(
            f"{label('context')} is {context}, which does not divide {count} GPUs: choose a divisor of {count}, or 0 (auto)."
        )
    problem = _problem(job, info, context)
    if problem is not None:
        raise problem


def _ways(
    job: Job, info: CheckpointInfo, possible: Sequence[Gpus], machine: int, device: torch.device, card: Card | None
) -> list["_Way"]:
    """Each with its time, the base whole where it fits; without a card, all as fast."""
    if card is None:
        return [_Way(gpus, machine if job.parallel.base == "sharded" else 1, float(gpus.context)) for gpus in possible]
    return [_timed(job, _assumed_decision(job, info, device, gpus), gpus, machine, card) for gpus in possible]


def _timed(job: Job, decision: Decision, gpus: Gpus, machine: int, card: Card) -> "_Way":
    planner = make_planner(job, decision, card, gpus)
    found = [_planned(planner, shards) for shards in _bases(job, machine)]
    # The whole base comes first, and is left only where it does not fit, or for much: what gathers take is assumed.
    return min(found, key=lambda way: way.seconds * (1 if way is found[0] else _MUCH))


def _planned(planner: Planner, shards: int) -> "_Way":
    planner = replace(planner, plan=replace(planner.plan, shards=shards))
    choice, gpus = planner.choose(), planner.task.gpus
    if choice is None:
        return _Way(gpus, shards, float("inf"))
    rounds = -(-planner.task.accumulation // gpus.side_by_side)
    return _Way(gpus, shards, choice.seconds / rounds)


def _assumed_decision(job: Job, info: CheckpointInfo, device: torch.device, gpus: Gpus) -> Decision:
    """As `decide` has it where everything works that the job allows; nothing is tried."""
    kind = (
        None
        if job.model.precision == AUTO or needs_adapter(job.model.precision)
        else precision_kind(job.model.precision)
    )
    dtype = (kind and kind.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    modes = wanted_modes(for_context(job, gpus.context)[0], device)
    return Decision(info=info, device=device, dtype=dtype, modes=modes, dropout=job.adapter.dropout > 0)


def _known_card(device: torch.device, folder: Path | None, count: int) -> Card | None:
    """What was measured of the GPU, or is assumed; all of its memory is taken for free. None for what is no GPU."""
    if device.type != "cuda":
        return None
    total = int(torch.cuda.get_device_properties(device).total_memory)  # pyright: ignore
    known = read_remembered(device_path(folder, device), version_of(device)) if folder else None
    rates = dict(ASSUMED)
    if known is not None and known.rates:
        rates = {**known.rates, "attention": max(known.attention_rates.values(), default=ASSUMED["attention"])}
    return assumed_card(
        torch.cuda.get_device_name(device), total, rates, link=read_link(folder, device, count) if folder else 0.0
    )


def assumed_card(name: str, total: int, rates: dict[str, float] | None = None, link: float = 0.0) -> Card:
    """A GPU of so many bytes with nothing else on it, beside as much main memory as is wanted."""
    overhead = constants().overhead_vram
    return Card(
        name=name,
        free=total - overhead,
        total=total,
        free_ram=_ASSUMED_RAM,
        pinnable_ram=_ASSUMED_RAM,
        overhead=overhead,
        link=link,
        **(rates or ASSUMED),
    )
