"""Which plan to train with: the fastest that fits the card and the main memory, found by trying them all.

A plan is shared by all buckets except for what its blocks keep: of each size of clips as much as fits, so that one large clip
does not take that speed from the small ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from ..memory.copies import NUM_STAGED
from ..memory.recompute import Kept
from ..settings.memory import BlockMode, MemoryOptions
from ..shortage import Shortage
from .beside import NOTHING, BesideSteps, WorkBeside
from .beside_costs import BesideCosts
from .card import Card, Correction
from .choice import Choice, Limits, SizeTime
from .estimate import Estimate, Peaks, SizeWork, held_by, pinned_ram
from .most import best_moved, most_number
from .plan import (
    Bucket,
    Plan,
    Task,
    block_weights,
    clip_tokens,
    is_graphed,
    keeping,
    keeps_products,
    kept_of,
    way_of,
)
from .run_costs import GRAPH, PIN_RATE, RunCosts, key, kinds_of_block
from .shortages import Met
from .switching import switch_seconds
from .ways import Ways

# Kept free: the allocator's unused pieces (0.65 GiB were measured under a cap of 10 GiB, where segments do not grow), what
# a prediction is short of, and what other programs may come to need.
MARGIN, MARGIN_BYTES = 0.05, 400 * 2**20
RAM_MARGIN_BYTES = 2 * 2**30
# Of main memory, with all else. What only makes steps faster leaves the rest to model files, which previews read, and to other
# programs: pinned memory can't be swapped out.
RAM_FOR_RESULTS = 0.75
STEP_DOWN = 0.92  # of the plan that ran out of memory: what the next one may take
# A feature costs a little more than is predicted, and may fail: it is chosen for a gain of more than this.
PREMIUM, PREMIUM_PER_BLOCK = 0.005, 0.0005


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans for one task. `plan` has what is not up to the planner: the precision, and how blocks run.

    What of `options` is None is up to the planner, the rest is kept to. With `compiles` it also chooses how blocks run, among
    these modes. It looks for the shortest run of so many `steps`, by `costs` of what is beside them; without `steps`, for the
    shortest step.
    """

    task: Task
    buckets: Sequence[Bucket]
    card: Card
    plan: Plan = field(default_factory=Plan)
    options: MemoryOptions = field(default_factory=MemoryOptions)
    correction: Correction = field(default_factory=Correction)
    corrections: Mapping[str, Correction] = field(
        default_factory=dict[str, Correction]
    )  # in its place, by how blocks run
    steps: int = 0
    costs: RunCosts = field(default_factory=RunCosts)
    work: WorkBeside | None = None  # beside the steps
    compiles: tuple[BlockMode, ...] = ()
    version: str = ""  # of all that what is learnt of runs depends on
    met: Met = field(default_factory=Met)
    alternate_every: int = 0  # steps after which the device is handed to another run
    keeps_weights: bool = False  # there meanwhile

    def limits(self) -> Limits:
        """What the card and the main memory offer, less a margin."""
        vram = self.card.free * (1 - MARGIN) - MARGIN_BYTES
        vram = min(vram, self.card.free * self.met.share)
        return Limits(int(vram), self.card.free_ram - RAM_MARGIN_BYTES, self.card.pinnable_ram - RAM_MARGIN_BYTES)

    def choose(self, limits: Limits | None = None) -> Choice | None:
        """The fastest choice within `limits`; None if there is none."""
        limits = limits or self.limits()
        fitting: dict[Plan, Choice] = {}
        for plan in self.plans():
            way = plan if plan.stream_from == "pinned" else replace(plan, stream_from="pinned")
            known = fitting.get(way)
            if known is not None and (known.plan.mapped_blocks == plan.mapped_blocks or plan.stream_from == "mapped"):
                # Of the same plan with other memory to swap from, pinned memory came first and is the fastest. If it fits
                # with no more blocks from files, the others need not be looked at.
                continue
            choice = self._fill(plan, limits)
            if choice is not None and (known is None or self._cost(choice) < self._cost(known)):
                fitting[way] = choice
        return min(fitting.values(), key=self._cost, default=None)

    def fits(self) -> bool:
        """Whether `choose` would find a plan. Quicker than `choose`, since it looks at the leanest plans alone."""
        limits = self.limits()
        return any(_fit(self._leanly(plan, limits), limits) for plan in self.plans())

    def leanest(self, limits: Limits | None = None) -> Choice:
        """The choice that takes the least of the GPU's memory; of those that fit into main memory, if any does."""
        limits = limits or self.limits()
        every = [self._leanly(plan, limits) for plan in self.plans()]
        every = [taken for taken in every if _fit_ram(taken, limits)] or every
        least = min(taken.vram for taken in every)
        choices = [self._evaluate(taken.plan, self._least(taken.plan)) for taken in every if taken.vram == least]
        return min(choices, key=lambda choice: choice.seconds)

    def step_down(self, failed: Choice, shortage: Shortage) -> Choice | None:
        """What to go on with after `failed` ran out of memory: the fastest choice that takes clearly less of that memory.

        If there is none, the choice that takes the least; None if nothing takes less.
        """
        limits = self.limits()
        if shortage == "ram":
            lower = replace(limits, vram=failed.vram, ram=int(failed.ram * STEP_DOWN))
            return self.choose(lower)
        vram = min(limits.vram, int(failed.vram * STEP_DOWN))
        lower = replace(limits, vram=vram, ram=max(limits.ram, failed.ram))
        found = self.choose(lower)
        if found is None:
            found = self.leanest(lower)
            found = found if found.vram < failed.vram and found.fits_ram(lower) else None
        return found

    def describe(self, plan: Plan, by_tokens: Mapping[int, Kept] | None = None) -> Choice:
        """`plan` as it is; what is kept as `by_tokens` of a batch has it, and for any other size as the plan has it."""
        found, other = by_tokens or {}, kept_of(plan)
        sizes = {bucket: bucket.batch * clip_tokens(self.task.sizes, bucket) for bucket in self.buckets}
        return self._evaluate(plan, {bucket: found.get(tokens, other) for bucket, tokens in sizes.items()})

    def plans(self) -> Iterator[Plan]:
        """All plans that the options allow; see `Ways.plans`."""
        longest = max(clip_tokens(self.task.sizes, bucket) for bucket in self.buckets)
        multiplies = bool(self.card.matmul_fp8)
        ways = Ways(
            task=self.task,
            plan=self.plan,
            options=self.options,
            longest=longest,
            fp8=multiplies and not self.alternate_every,  # what is transposed does not leave with the model
            graphs=self.met.graphs,
        )
        for mode in self.compiles or (self.plan.compile,):
            yield from ways.plans(mode)

    def _least(self, plan: Plan) -> dict[Bucket, Kept]:
        chosen = self.options.keep_attention, self.options.keep_linears, self.options.offload_linears
        return dict.fromkeys(self.buckets, Kept(*(each or 0 for each in chosen)) if plan.checkpointing else Kept())

    def _fill(self, plan: Plan, limits: Limits) -> Choice | None:
        """`plan`, keeping as many results of the forward as fit into memory; None if it does not fit at all."""
        taken = self._leanly(plan, limits)
        if not _fit(taken, limits):
            return None
        kept = self._least(plan)
        if plan.checkpointing:
            works, most = self._works(plan), self.task.sizes.num_layers
            for bucket in sorted(works, key=self._tokens, reverse=True):
                # A smaller size moves no more blocks than a larger one: it then finds all of its buffers among those.
                kept[bucket] = self._most_kept(plan, taken.held, works[bucket], limits, most)
                most = min(most, kept[bucket].moved)
        return self._evaluate(taken.plan, kept)

    def _tokens(self, bucket: Bucket) -> int:
        return bucket.batch * clip_tokens(self.task.sizes, bucket)

    def _leanly(self, plan: Plan, limits: Limits) -> "_Taken":
        """`plan` with as little kept as can be, and as few memory-mapped blocks as it takes to fit into main memory."""
        least = self._taken(plan)
        if self.options.mapped_blocks is not None or plan.stream_from == "mapped" or _fit_ram(least, limits):
            return least
        block, ram = block_weights(self.task, plan), least.ram
        pinned = 0
        if plan.stream_from == "pinned":  # with the first memory-mapped block, buffers are needed to stage blocks in
            pinned = least.held.ram + NUM_STAGED * block
            ram += NUM_STAGED * block
        saved = block // self.task.gpus.holders  # of this process's part, by each block that is memory-mapped
        number = max(_blocks_above(ram, limits.ram, saved), _blocks_above(pinned, limits.pinned, saved))
        if number >= plan.streamed_blocks:  # that is stream_from "mapped"
            return least
        return self._taken(replace(plan, mapped_blocks=number))

    def _taken(self, plan: Plan) -> "_Taken":
        """What `plan` takes with as little kept as can be."""
        held, works = held_by(self.task, plan), self._works(plan)
        peaks = [works[bucket].peaks(kept) for bucket, kept in self._least(plan).items()]
        vram, ram, moved = (max(bytes) for bytes in zip(*peaks, strict=True))
        return _Taken(plan, held, held.vram + vram, held.ram + ram, moved)

    def _most_kept(self, plan: Plan, held: Peaks, work: SizeWork, limits: Limits, most: int) -> Kept:
        """As much as fits on the device, and in main memory, of up to `most` blocks, as much as makes a step the shortest."""

        def fits(kept: Kept) -> bool:
            peaks = work.peaks(kept)
            fits_ram = limits.have_ram(plan, held.ram + peaks.ram, held.ram, peaks.moved)
            return fits_ram and held.vram + peaks.vram <= limits.vram

        least = self.options.offload_linears or 0
        kept = self._most_on_device(plan, least, fits)
        if not self._may_move(plan):
            return kept
        linears, attention = self.options.keep_linears or 0, self.options.keep_attention or 0
        high = min(most, self.task.sizes.num_layers - max(linears, 1))  # the last block's are needed at once
        ram = int(limits.ram * RAM_FOR_RESULTS)

        def may_take(kept: Kept) -> bool:
            return fits(kept) and held.ram + work.peaks(kept).ram <= ram

        found = best_moved(
            most=most_number(high, lambda number: may_take(Kept(attention, linears, number))),
            fill=lambda number: self._most_on_device(plan, number, fits),
            cost=lambda kept: self._cost_of_kept(plan, kept, work),
        )
        return found or kept

    def _most_on_device(self, plan: Plan, moved: int, fits: Callable[[Kept], bool]) -> Kept:
        """As much as fits. Attention first, which saves more time for its memory; products once all attention is kept.

        Both memories count: a block in parts that keeps its attention has a second input, which may wait in main memory.
        `moved`: blocks that keep theirs in main memory.
        """
        chosen, layers = self.options, self.task.sizes.num_layers
        linears, attention = chosen.keep_linears or 0, chosen.keep_attention
        if attention is None:
            attention = most_number(layers, lambda number: fits(Kept(number, linears, moved)))
        if (
            chosen.keep_linears is None
            and not plan.split_blocks
            and keeps_products(self.task, plan)
            and (attention == layers or chosen.keep_attention is not None)
        ):
            high = min(attention, layers - moved)
            linears = most_number(high, lambda number: fits(Kept(attention, number, moved)))
        return Kept(attention, linears, moved)

    def _may_move(self, plan: Plan) -> bool:
        """Whether it is worth a look to let blocks keep results in main memory; where that is short itself, it is not."""
        is_plain = not (plan.split_blocks or plan.ffn_pieces > 1 or plan.mapped_blocks) and plan.stream_from == "pinned"
        is_free = self.options.offload_linears is None and not is_graphed(self.task, plan) and not self.task.seen
        if self.alternate_every and not self.task.second_base:  # with each turn buffers would be pinned anew
            return False
        return plan.compile == "kernels" and plan.checkpointing and is_plain and is_free

    def _cost_of_kept(self, plan: Plan, kept: Kept, work: SizeWork) -> float:
        """Seconds of a batch, with what is paid for a feature, and for each of its blocks; and its part of the start."""
        premium = PREMIUM * (kept.moved > 0) + PREMIUM_PER_BLOCK * kept.moved
        pinning = work.peaks(kept).moved / PIN_RATE / self.steps if self.steps else 0.0
        return work.seconds(keeping(plan, kept)) * (1 + premium) + pinning

    def _works(self, plan: Plan) -> Mapping[Bucket, SizeWork]:
        """Of each size of clips, under the plan's way to compute."""
        way = way_of(self.task, plan)
        if way not in self._known:
            correction = self.correction_of(plan)
            self._known[way] = {b: SizeWork(self.task, b, way, self.card, correction) for b in self.buckets}
        return self._known[way]

    @cached_property
    def _known(self) -> dict[Plan, Mapping[Bucket, SizeWork]]:
        """What has been worked out, by the way to compute."""
        return {}

    def _evaluate(self, plan: Plan, kept: Mapping[Bucket, Kept]) -> Choice:
        held, works = held_by(self.task, plan), self._works(plan)
        plans = {b: keeping(plan, kept[b]) for b in self.buckets}
        found = {b: works[b].estimate(plans[b], held) for b in self.buckets}
        largest = max(self.buckets, key=lambda bucket: found[bucket].vram)
        shares = sum(bucket.share for bucket in self.buckets)
        by_tokens: dict[int, Kept] = {}
        for bucket in self.buckets:
            tokens = bucket.batch * clip_tokens(self.task.sizes, bucket)
            by_tokens[tokens] = min(kept[bucket], by_tokens.get(tokens, kept[bucket]))
        sizes = self._sizes(plan, kept, found) if self.steps else {}
        pinning = max(works[b].peaks(kept[b]).moved for b in self.buckets) / PIN_RATE  # in the first steps
        return Choice(
            start_seconds=self.costs.start_seconds(pinned_ram(self.task, plan)) if self.steps else 0.0,
            sizes_seconds=self._all_firsts(plan, sizes) + pinning if self.steps else 0.0,
            sizes=self._by_step(sizes.values()),
            plan=plans[largest],
            kept=by_tokens,
            vram=found[largest].vram,
            ram=max(one.ram for one in found.values()),
            seconds=sum(b.share * found[b].seconds for b in self.buckets) / shares,
            estimates=found,
            switch_every=self.alternate_every,
            switch_seconds=self._switch_seconds(plan, len(by_tokens)),
            beside=self._beside(plan, held.vram) if self.steps else NOTHING,
        )

    def _beside(self, plan: Plan, held: int) -> BesideSteps:
        if self.work is None:
            return NOTHING
        factor, free = self.correction_of(plan).time, self.limits().vram - held
        change = self._switch_seconds(plan, 1) if self.task.second_base else 0.0
        return self._beside_costs.beside(self.work, plan, self.costs, factor=factor, free=free, change=change)

    @cached_property
    def _beside_costs(self) -> BesideCosts:
        return BesideCosts(self.task, self.card)

    def _switch_seconds(self, plan: Plan, sizes: int) -> float:
        if not self.alternate_every:
            return 0.0
        return switch_seconds(self.task, plan, self.card, keeps_weights=self.keeps_weights, sizes=sizes)

    def correction_of(self, plan: Plan) -> Correction:
        """The correction of what is predicted of `plan`."""
        return self.corrections.get(plan.compile, self.correction)

    def _sizes(self, plan: Plan, kept: Mapping[Bucket, Kept], found: Mapping[Bucket, Estimate]) -> dict[int, SizeTime]:
        """By the tokens of a batch, which is what makes a size new to a compiler."""
        total = sum(bucket.share for bucket in self.buckets)
        sizes: dict[int, SizeTime] = {}
        for bucket in self.buckets:
            tokens = bucket.batch * clip_tokens(self.task.sizes, bucket)
            share, seconds, first = (
                bucket.share / total,
                found[bucket].seconds,
                self._first_seconds(plan, kept[bucket], tokens),
            )
            if known := sizes.get(tokens):
                seconds = (known.share * known.seconds + share * seconds) / (known.share + share)
                share += known.share
            sizes[tokens] = SizeTime(share, seconds, first, tokens)
        return sizes

    def _by_step(self, sizes: Iterable[SizeTime]) -> dict[int, SizeTime]:
        """By the tokens that a step tells whose batches are all of one size: without copies of them.

        What differs in the number of copies alone is one to those who read that: the larger, at their mean time.
        """
        found: dict[int, SizeTime] = {}
        copies = {
            bucket.batch * clip_tokens(self.task.sizes, bucket): (bucket.passes or self.task.passes).copies
            for bucket in self.buckets
        }
        for size in sorted(sizes, key=lambda size: size.tokens):
            step = size.tokens // copies[size.tokens] * self.task.accumulation
            known = found.get(step)
            if known is not None:
                share = known.share + size.share
                seconds = (known.share * known.seconds + size.share * size.seconds) / share
                size = replace(size, share=share, seconds=seconds, first=max(known.first, size.first))
            found[step] = size
        return found

    def _first_seconds(self, plan: Plan, kept: Kept, tokens: int) -> float:
        kinds = kinds_of_block(keeping(plan, kept), self.task.sizes.num_layers)
        keys = [key(plan, tokens, kind) for kind in kinds]
        return self.costs.size_seconds(plan.compile, keys) + (GRAPH if is_graphed(self.task, plan) else 0.0)

    def _all_firsts(self, plan: Plan, sizes: Mapping[int, SizeTime]) -> float:
        """Seconds of all first steps: of each size, times how likely the run is to see it; and what is compiled once."""
        seen = sum(size.first * (1 - (1 - min(size.share, 1.0)) ** self.steps) for size in sizes.values())
        return seen + self.costs.once_seconds(plan.compile)

    def _cost(self, choice: Choice) -> float:
        plan = choice.plan
        kept = sum(any(numbers) for numbers in zip(*choice.kept.values(), strict=True))
        features = plan.split_blocks + (plan.ffn_pieces > 1) + plan.offload_inputs + (plan.streamed_blocks > 0) + kept
        features += plan.offload_optimizer + plan.keep_transposed + is_graphed(self.task, plan)
        blocks = plan.streamed_blocks + plan.mapped_blocks + max(each.moved for each in choice.kept.values())
        steps = choice.seconds * max(self.steps, 1) * (1 + PREMIUM * features + PREMIUM_PER_BLOCK * blocks)
        return choice.sizes_seconds + steps + choice.all_switches(self.steps)


class _Taken(NamedTuple):
    """What a plan takes: what it holds all the time, and its peaks over all sizes of clips."""

    plan: Plan
    held: Peaks
    vram: int
    ram: int
    moved: int  # of it, results that blocks keep


def _fit_ram(taken: _Taken, limits: Limits) -> bool:
    return limits.have_ram(taken.plan, taken.ram, taken.held.ram, taken.moved)


def _fit(taken: _Taken, limits: Limits) -> bool:
    return taken.vram <= limits.vram and _fit_ram(taken, limits)


def _blocks_above(num_bytes: int, limit: int, block: int) -> int:
    """How many blocks must be left out to bring `num_bytes` down to `limit`."""
    return max(-((limit - num_bytes) // block), 0)
