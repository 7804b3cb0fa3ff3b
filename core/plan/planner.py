"""Which plan to train with: the fastest that fits the card and the main memory, found by trying them all.

A plan is shared by all buckets except for `keep_attention` and `keep_linears`: each size of clips keeps as much as fits,
so that one large clip does not take that speed from the small ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product

from ..memory.copies import NUM_STAGED
from ..memory.recompute import Kept
from ..settings.memory import Compile, CudaGraphs, MasterKind
from ..shortage import Shortage
from .card import Card, Fit
from .estimate import Estimate, estimate, estimate_ram, estimate_vram
from .plan import (
    Bucket,
    Plan,
    Task,
    block_weights,
    clip_tokens,
    is_graphed,
)
from .run_costs import GRAPH, RunCosts, key, kinds_of_block
from .shortages import Met
from .sizes import can_offload

# Kept free: the allocator's unused pieces (0.65 GiB were measured under a cap of 10 GiB, where segments do not grow), what
# a prediction is short of, and what other programs may come to need.
MARGIN, MARGIN_BYTES = 0.05, 400 * 2**20
RAM_MARGIN_BYTES = 2 * 2**30
STEP_DOWN = 0.92  # of the plan that ran out of memory: what the next one may take
# A feature costs a little more than is predicted, and may fail: it is chosen for a gain of more than this.
PREMIUM, PREMIUM_PER_BLOCK = 0.005, 0.0005
# Of the feed-forward: more save little, and shorter ones than this save nothing worth their kernels.
FFN_PIECES, LEAST_TOKENS = 4, 2048


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Fields of the plan that the user has chosen; None leaves them to the planner."""

    checkpointing: bool | None = None
    keep_attention: int | None = None
    keep_linears: int | None = None
    split_blocks: bool | None = None
    ffn_pieces: int | None = None
    offload_inputs: bool | None = None
    offload_optimizer: bool | None = None
    streamed_blocks: int | None = None
    stream_from: MasterKind | None = None
    mapped_blocks: int | None = None


@dataclass(frozen=True)
class Limits:
    """Bytes that a plan may take."""

    vram: int
    ram: int
    pinned: int


@dataclass(frozen=True)
class SizeTime:
    """Of the steps of one size."""

    share: float  # of all steps
    seconds: float  # of each
    first: float  # more of the first one


@dataclass(frozen=True)
class Choice:
    """A plan, with what it is expected to take: the peaks over all sizes, and the mean time of a step.

    Of the whole run `start_seconds` go by before the first step and after the last, and `sizes_seconds` are what the first
    step of each size takes more than others.
    """

    plan: Plan  # as the size that takes most has it
    kept: Mapping[int, Kept]  # by the tokens of a batch
    vram: int
    ram: int
    seconds: float
    estimates: Mapping[Bucket, Estimate] = field(default_factory=dict)
    start_seconds: float = 0.0
    sizes_seconds: float = 0.0
    sizes: Mapping[int, SizeTime] = field(default_factory=dict)  # by the tokens of a batch

    def run_seconds(self, steps: int) -> float:
        """From the start of the process to the LoRA."""
        return self.start_seconds + self.sizes_seconds + steps * self.seconds

    @property
    def keep_attention(self) -> dict[int, int]:
        """By the tokens of a batch."""
        return {tokens: kept.attention for tokens, kept in self.kept.items()}

    @property
    def keep_linears(self) -> dict[int, int]:
        """By the tokens of a batch."""
        return {tokens: kept.linears for tokens, kept in self.kept.items()}


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans for one task. `plan` holds what is not up to the planner: the precision, and how blocks are compiled.

    With `compiles` the planner chooses among these ways to compile, too. With `steps` it is the run that shall be short, by
    `costs` of what is beside its steps; without, the step.
    """

    task: Task
    buckets: Sequence[Bucket]
    card: Card
    plan: Plan = field(default_factory=Plan)
    pins: Pins = field(default_factory=Pins)
    fit: Fit = field(default_factory=Fit)
    corrections: Mapping[str, Fit] = field(default_factory=dict)  # in its place, by the way to compile
    steps: int = 0
    costs: RunCosts = field(default_factory=RunCosts)
    compiles: tuple[Compile, ...] = ()
    version: str = ""  # of what compiled code depends on
    met: Met = field(default_factory=Met)

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
            way = replace(plan, stream_from="pinned")
            known = fitting.get(way)
            if known is not None and (known.plan.mapped_blocks == plan.mapped_blocks or plan.stream_from == "mapped"):
                continue  # what comes first is the fastest where it fits as it is, and the last the slowest
            choice = self._fill(plan, limits)
            if choice is not None and (known is None or self._cost(choice) < self._cost(known)):
                fitting[way] = choice
        return min(fitting.values(), key=self._cost, default=None)

    def fits(self) -> bool:
        """Whether `choose` finds anything, which this says sooner."""
        limits = self.limits()
        leanest = (self._leanly(plan, limits) for plan in self.plans())
        return any(choice.vram <= limits.vram and _fits_ram(choice, limits) for choice in leanest)

    def leanest(self, limits: Limits | None = None) -> Choice:
        """The choice that takes the least memory of the card, of those within the main memory where there are any."""
        limits = limits or self.limits()
        all_choices = [self._leanly(plan, limits) for plan in self.plans()]
        possible = [choice for choice in all_choices if _fits_ram(choice, limits)]
        return min(possible or all_choices, key=lambda choice: (choice.vram, choice.seconds))

    def step_down(self, failed: Choice, shortage: Shortage) -> Choice | None:
        """What to go on with after `failed` ran out of memory: the fastest that takes clearly less of it, else the least.

        None if nothing takes less.
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
            found = found if found.vram < failed.vram and _fits_ram(found, lower) else None
        return found

    def describe(self, plan: Plan) -> Choice:
        """`plan` as it is, for every size."""
        return self._evaluate(plan, dict.fromkeys(self.buckets, Kept(plan.keep_attention, plan.keep_linears)))

    def plans(self) -> Iterator[Plan]:
        """All plans that the pins allow, with nothing kept and no blocks from disk among others beyond what is pinned."""
        for compile in self.compiles or (self.plan.compile,):
            yield from self._plans_of(compile)

    def _plans_of(self, compile: Compile) -> Iterator[Plan]:
        pins, layers = self.pins, self.task.sizes.num_layers
        off = {"keep_attention": 0, "keep_linears": 0, "streamed_blocks": 0, "split_blocks": False, "ffn_pieces": 1}
        state = bool(pins.offload_optimizer)
        base = replace(
            self.plan,
            **off,
            compile=compile,
            mapped_blocks=0,
            offload_inputs=False,
            offload_optimizer=state,
            checkpointing=True,
        )
        if pins.checkpointing is not True and not _need_checkpointing(pins):
            yield from self._with_and_without_graphs(replace(base, checkpointing=False))
        if pins.checkpointing is False:
            return
        mapped = pins.mapped_blocks or 0
        kinds: tuple[MasterKind, ...] = ("pinned", "pageable") if mapped else ("pinned", "pageable", "mapped")
        kinds = kinds if pins.stream_from is None else (pins.stream_from,)
        counts = range(mapped, layers + 1) if pins.streamed_blocks is None else (pins.streamed_blocks,)
        for way in self._ways(base):
            for count in counts:
                for kind in kinds if count else kinds[:1]:
                    plan = replace(way, streamed_blocks=count, stream_from=kind, mapped_blocks=mapped)
                    yield from self._with_and_without_graphs(plan)

    def _with_and_without_graphs(self, plan: Plan) -> Iterator[Plan]:
        """Where they are possible, and no run has met a shortage with them."""
        modes: tuple[CudaGraphs, ...] = (plan.cuda_graphs,)
        if is_graphed(self.task, plan):
            modes = ("auto", "off") if self.met.graphs else ("off",)
        for mode in modes:
            yield replace(plan, cuda_graphs=mode)

    def _ways(self, base: Plan) -> Iterator[Plan]:
        """Blocks in parts or not, pieces of their feed-forward; inputs and the optimizer's state on the device or not."""
        pins = self.pins
        inputs = (False, True) if pins.offload_inputs is None else (pins.offload_inputs,)
        for (split, pieces), offload, state in product([*self._whole(), *self._split(base)], inputs, self._states()):
            way = replace(base, split_blocks=split, ffn_pieces=pieces)
            yield replace(way, offload_inputs=offload, offload_optimizer=state)

    def _states(self) -> tuple[bool, ...]:
        if self.pins.offload_optimizer is not None:
            return (self.pins.offload_optimizer,)
        return (False, True) if can_offload(self.task.trained) else (False,)

    def _whole(self) -> Iterator[tuple[bool, int]]:
        pins = self.pins
        if pins.split_blocks:
            return
        if pins.ffn_pieces is not None:
            yield False, pins.ffn_pieces
            return
        yield False, 1
        if max(clip_tokens(self.task.sizes, bucket) for bucket in self.buckets) >= FFN_PIECES * LEAST_TOKENS:
            yield False, FFN_PIECES

    def _split(self, base: Plan) -> Iterator[tuple[bool, int]]:
        pins = self.pins
        costs_compile = self.task.trained.dropout and base.compile in ("static", "dynamic")  # see `split.py`
        excluded = pins.keep_linears or (pins.ffn_pieces or 1) > 1 or costs_compile
        if pins.split_blocks or (pins.split_blocks is None and not excluded):
            yield True, 1

    def _least(self, plan: Plan) -> dict[Bucket, Kept]:
        kept = Kept(self.pins.keep_attention or 0, self.pins.keep_linears or 0) if plan.checkpointing else Kept()
        return dict.fromkeys(self.buckets, kept)

    def _fill(self, plan: Plan, limits: Limits) -> Choice | None:
        """`plan` with as much kept as fits; None if it does not fit at all."""
        if self._least_vram(plan) > limits.vram:
            return None
        least = self._leanly(plan, limits)
        if not _fits_ram(least, limits):
            return None
        if not plan.checkpointing:
            return least
        plan = replace(plan, mapped_blocks=least.plan.mapped_blocks)
        return self._evaluate(plan, {bucket: self._most_kept(plan, bucket, limits) for bucket in self.buckets})

    def _least_vram(self, plan: Plan) -> int:
        least = self._least(plan)
        return max(estimate_vram(self.task, b, _keeping(plan, kept), self.fit_of(plan)) for b, kept in least.items())

    def _leanly(self, plan: Plan, limits: Limits) -> Choice:
        """`plan` with as little kept as can be, and as few blocks from disk as it takes to fit the main memory."""
        least = self._evaluate(plan, self._least(plan))
        if self.pins.mapped_blocks is not None or plan.stream_from == "mapped" or _fits_ram(least, limits):
            return least
        block, ram = block_weights(self.task, plan), least.ram
        pinned = 0
        if plan.stream_from == "pinned":  # which blocks from disk are the first to need staging for
            pinned = _exact_ram(least) + NUM_STAGED * block
            ram += NUM_STAGED * block
        number = max(_blocks_above(ram, limits.ram, block), _blocks_above(pinned, limits.pinned, block))
        if number >= plan.streamed_blocks:  # that is stream_from "mapped"
            return least
        return self._evaluate(replace(plan, mapped_blocks=number), self._least(plan))

    def _most_kept(self, plan: Plan, bucket: Bucket, limits: Limits) -> Kept:
        """What fits, which attention takes less of for the time it saves: linears where all attention fits.

        In main memory, too: a block in parts that keeps its attention has a second input, which may wait there.
        """
        pins, layers = self.pins, self.task.sizes.num_layers

        def fits(kept: Kept) -> bool:
            kept_plan = _keeping(plan, kept)
            if estimate_ram(self.task, bucket, kept_plan) > limits.ram:
                return False
            return estimate_vram(self.task, bucket, kept_plan, self.fit_of(plan)) <= limits.vram

        linears = pins.keep_linears or 0
        attention = pins.keep_attention
        if attention is None:
            attention = _most(layers, lambda number: fits(Kept(number, linears)))
        if (
            pins.keep_linears is None
            and not plan.split_blocks
            and (attention == layers or pins.keep_attention is not None)
        ):
            linears = _most(attention, lambda number: fits(Kept(attention, number)))
        return Kept(attention, linears)

    def _evaluate(self, plan: Plan, kept: Mapping[Bucket, Kept]) -> Choice:
        found = {b: self._estimate(_keeping(plan, kept[b]), b) for b in self.buckets}
        largest = max(self.buckets, key=lambda bucket: found[bucket].vram)
        shares = sum(bucket.share for bucket in self.buckets)
        by_tokens: dict[int, Kept] = {}
        for bucket in self.buckets:
            tokens = bucket.batch * clip_tokens(self.task.sizes, bucket)
            by_tokens[tokens] = min(kept[bucket], by_tokens.get(tokens, kept[bucket]))
        sizes = self._sizes(plan, kept, found) if self.steps else {}
        return Choice(
            start_seconds=self.costs.start_seconds() if self.steps else 0.0,
            sizes_seconds=self._all_firsts(plan, sizes) if self.steps else 0.0,
            sizes=sizes,
            plan=_keeping(plan, kept[largest]),
            kept=by_tokens,
            vram=found[largest].vram,
            ram=max(one.ram for one in found.values()),
            seconds=sum(b.share * found[b].seconds for b in self.buckets) / shares,
            estimates=found,
        )

    def _estimate(self, plan: Plan, bucket: Bucket) -> Estimate:
        return estimate(self.task, bucket, plan, self.card, self.fit_of(plan))

    def fit_of(self, plan: Plan) -> Fit:
        """The correction of what is predicted of `plan`."""
        return self.corrections.get(plan.compile, self.fit)

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
            sizes[tokens] = SizeTime(share, seconds, first)
        return sizes

    def _first_seconds(self, plan: Plan, kept: Kept, tokens: int) -> float:
        kinds = kinds_of_block(_keeping(plan, kept), self.task.sizes.num_layers)
        keys = [key(self.version, plan, tokens, kind) for kind in kinds]
        return self.costs.size_seconds(plan.compile, keys) + (GRAPH if is_graphed(self.task, plan) else 0.0)

    def _all_firsts(self, plan: Plan, sizes: Mapping[int, SizeTime]) -> float:
        """Of those sizes that the run will see, as likely as each is."""
        seen = sum(size.first * (1 - (1 - min(size.share, 1.0)) ** self.steps) for size in sizes.values())
        return seen + self.costs.once_seconds(plan.compile)

    def _cost(self, choice: Choice) -> float:
        plan = choice.plan
        kept = sum(any(numbers) for numbers in zip(*choice.kept.values(), strict=True))
        features = plan.split_blocks + (plan.ffn_pieces > 1) + plan.offload_inputs + (plan.streamed_blocks > 0) + kept
        features += plan.offload_optimizer + is_graphed(self.task, plan)
        blocks = plan.streamed_blocks + plan.mapped_blocks
        return choice.sizes_seconds + choice.seconds * max(self.steps, 1) * (
            1 + PREMIUM * features + PREMIUM_PER_BLOCK * blocks
        )


def differences(old: Plan, new: Plan) -> list[str]:
    """Names of the fields that differ."""
    return [f.name for f in fields(Plan) if getattr(old, f.name) != getattr(new, f.name)]


def _need_checkpointing(pins: Pins) -> bool:
    features = (pins.keep_attention, pins.keep_linears, pins.split_blocks, pins.offload_inputs, pins.streamed_blocks)
    return any(features) or (pins.ffn_pieces or 1) > 1


def _keeping(plan: Plan, kept: Kept) -> Plan:
    if (plan.keep_attention, plan.keep_linears) == kept:
        return plan
    return replace(plan, keep_attention=kept.attention, keep_linears=kept.linears)


def _most(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `high` that fits, as 0 does. `high` itself may take less than the one below it."""
    if fits(high):
        return high
    low, high = 0, high - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _blocks_above(num_bytes: int, limit: int, block: int) -> int:
    """How many blocks have to go for `num_bytes` to be within `limit`."""
    return max(-((limit - num_bytes) // block), 0)


def _exact_ram(choice: Choice) -> int:
    return max(one.exact_ram for one in choice.estimates.values())


def _fits_ram(choice: Choice, limits: Limits) -> bool:
    pinned = _exact_ram(choice) if choice.plan.stream_from == "pinned" else 0
    return choice.ram <= limits.ram and pinned <= limits.pinned
