"""All plans that the user's options allow: what the planner chooses from."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ..settings.memory import BlockMode, CudaGraphs, MasterKind, MemoryOptions
from ..settings.plain import PLAIN
from .plan import Plan, Task, can_keep_transposed, is_graphed
from .sizes import can_offload

# Pieces of a chunked feed-forward: more save little, and pieces of fewer tokens save less than their kernels cost.
FFN_PIECES, LEAST_TOKENS = 4, 2048


@dataclass(frozen=True, kw_only=True)
class Ways:
    """`plan` with everything else than its precision varied, as far as `options` leave it open."""

    task: Task
    plan: Plan
    options: MemoryOptions
    longest: int  # tokens of the longest clip
    fp8: bool  # whether the card multiplies in fp8
    graphs: bool  # whether CUDA graphs may be used; if not, where they could be, the plan says that they are off

    def plans(self, mode: BlockMode) -> Iterator[Plan]:
        """All plans whose blocks run in this mode. They keep nothing yet, and memory-map as many as the user chose."""
        chosen, layers = self.options, self.task.sizes.num_layers
        if chosen.offload_linears and mode != "kernels":
            return
        given = {"stream_from": self.plan.stream_from, "offload_optimizer": bool(chosen.offload_optimizer)}
        base = replace(self.plan, **{**PLAIN, **given}, compile=mode)
        base = replace(base, offload_linears=chosen.offload_linears or 0)  # with which there are no graphs
        if chosen.checkpointing is not True and not self._need_checkpointing():
            yield from self._transposed_or_not(replace(base, checkpointing=False))
        if chosen.checkpointing is False:
            return
        mapped = chosen.mapped_blocks or 0
        kinds: tuple[MasterKind, ...] = ("pinned", "pageable") if mapped else ("pinned", "pageable", "mapped")
        kinds = kinds if chosen.stream_from is None else (chosen.stream_from,)
        counts = range(mapped, layers + 1) if chosen.streamed_blocks is None else (chosen.streamed_blocks,)
        for way in self._recomputing(base):
            for count in counts:
                for kind in kinds if count else kinds[:1]:
                    plan = replace(way, streamed_blocks=count, stream_from=kind, mapped_blocks=mapped)
                    yield from self._transposed_or_not(plan)

    def _need_checkpointing(self) -> bool:
        chosen = self.options
        features = (
            *(chosen.keep_attention, chosen.keep_linears, chosen.offload_linears),
            *(chosen.split_blocks, chosen.offload_inputs, chosen.streamed_blocks),
        )
        return any(features) or self.plan.shards > 1 or (chosen.ffn_pieces or 1) > 1

    def _transposed_or_not(self, plan: Plan) -> Iterator[Plan]:
        """With the weights as they are, and with them transposed as well where that saves something."""
        yield from self._with_and_without_graphs(plan)
        if self.fp8 and can_keep_transposed(self.task, plan):
            yield from self._with_and_without_graphs(replace(plan, keep_transposed=True))

    def _with_and_without_graphs(self, plan: Plan) -> Iterator[Plan]:
        modes: tuple[CudaGraphs, ...] = (plan.cuda_graphs,)
        if is_graphed(self.task, plan):
            modes = ("auto", "off") if self.graphs else ("off",)
        for mode in modes:
            yield plan if mode == plan.cuda_graphs else replace(plan, cuda_graphs=mode)

    def _recomputing(self, base: Plan) -> Iterator[Plan]:
        """Blocks whole or in parts, with chunked feed-forward or not; their inputs, and the optimizer's state, offloaded."""
        chosen = self.options
        inputs = (False, True) if chosen.offload_inputs is None else (chosen.offload_inputs,)
        for (split, pieces), offload, state in product([*self._whole(), *self._split(base)], inputs, self._states()):
            way = replace(base, split_blocks=split, ffn_pieces=pieces)
            yield replace(way, offload_inputs=offload, offload_optimizer=state)

    def _states(self) -> tuple[bool, ...]:
        if self.options.offload_optimizer is not None:
            return (self.options.offload_optimizer,)
        return (False, True) if can_offload(self.task.trained) else (False,)

    def _whole(self) -> Iterator[tuple[bool, int]]:
        chosen = self.options
        if chosen.split_blocks:
            return
        if chosen.ffn_pieces is not None:
            yield False, chosen.ffn_pieces
            return
        yield False, 1
        if self.longest >= FFN_PIECES * LEAST_TOKENS:
            yield False, FFN_PIECES

    def _split(self, base: Plan) -> Iterator[tuple[bool, int]]:
        chosen = self.options
        trained = self.task.trained
        is_random = trained.dropout or trained.options.is_random
        costs_compile = is_random and base.compile in ("static", "dynamic")  # see `split.py`
        excluded = chosen.keep_linears or chosen.offload_linears or (chosen.ffn_pieces or 1) > 1 or costs_compile
        if chosen.split_blocks or (chosen.split_blocks is None and not excluded):
            yield True, 1
