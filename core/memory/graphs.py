"""CUDA graphs: all kernels of a forward or a backward are launched at once, as they were recorded.

A step at 512x512 is thousands of kernels of some microseconds each, and the host takes longer to launch them one by one
than the GPU to run them. Recorded once for each size of clips, they follow each other without a gap. The kernels are those
that the first steps ran, so the numbers are the same.
"""

import contextlib
import gc
import logging
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_compat import end_allocating_to_pool, foreach_add_, foreach_copy_, foreach_zero_

log = logging.getLogger(__name__)

Act = Callable[[], None]
Recorder = Callable[[Act], Act]  # an act, not yet done -> what does it, as often as wanted
InputSignature = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]

WARM_UP = 2  # steps of a size before it is recorded: they compile, and choose the kernels
PATIENCE = 16  # steps that the recording waits for a size which has come, but not often enough yet


class Graphs:
    """In the place of a model's forward: the same, by recorded kernels where gradients are wanted.

    To be put on a model that launches the same kernels in every step and waits for none: nothing streamed or offloaded, no
    dropout. A backward adds to the parameters' `grad` itself, which `torch.autograd.grad` does not see; the inputs get no
    gradient. Without gradients the forward runs as it is, and so does one beside a recorded forward that still waits for
    its backward, since all graphs share the memory in which that keeps what it saved. A backward can be run once.

    All sizes share one pool of memory, as large as the largest size needs. PyTorch gives its pieces back to no one while
    a graph lives, and does not join them: so all sizes are recorded one after the other, the largest first, whose freed
    pieces hold those of every smaller one; and a size that is not recorded yet runs when there are no graphs, since its
    step takes memory of its own.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        parameters: Sequence[nn.Parameter],
        *,
        tell: Callable[[str], None],
        held: Callable[[], object] = tuple,
        record: Recorder | None = None,
    ) -> None:
        """`parameters`: all that want a gradient.

        `tell` is given a sentence if recording fails: the steps then go on without. `held`: what the forward reads and may
        be dropped by its owner, which lasts as long as the graphs do. `record`: by default CUDA's.
        """
        self._forward, self._parameters = forward, list(parameters)
        self._tell, self._held = tell, held
        self._record = record
        self._sums: list[Tensor] = []
        self._seen = Counter[InputSignature]()
        self._since_new = 0  # steps since one of a size that is not to be recorded yet
        self._graphs: dict[InputSignature, _RecordedSize] = {}
        self._pool: Any = None
        self._failed = False
        self._gate = torch.empty(0, requires_grad=True)

    def __call__(self, *args: Tensor, **named: Tensor) -> Tensor:
        """What the forward returns."""
        if self._failed or not torch.is_grad_enabled() or self._is_waiting():
            return self._without(*args, **named)
        inputs = {**{str(number): tensor for number, tensor in enumerate(args)}, **named}
        signature = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.items())
        if signature not in self._graphs:
            self._meet(signature, inputs)
        graph = self._graphs.get(signature)
        if graph is None:
            return self._forward(*args, **named)
        return _Replay.apply(self._gate, graph, *inputs.values())  # type: ignore[no-any-return]

    def release(self) -> None:
        """Give the memory back. The next step records anew."""
        if self._graphs and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a graph may be at work
        held = bool(self._graphs)
        self._graphs.clear()
        self._sums = []
        self._pool = None
        if held:
            torch.cuda.empty_cache()

    def _is_waiting(self) -> bool:
        """Whether a recorded forward has its backward before it, for which somebody keeps its output."""
        return any(graph.is_waiting for graph in self._graphs.values())

    def _without(self, *args: Tensor, **named: Tensor) -> Tensor:
        """As it is, in memory of its own, for which there may be too little beside that of the graphs."""
        try:
            return self._forward(*args, **named)
        except torch.OutOfMemoryError:
            if not self._graphs:
                raise
        self.release()
        return self._forward(*args, **named)

    def _meet(self, signature: InputSignature, inputs: Mapping[str, Tensor]) -> None:
        """A step of a size that is not recorded: it is now, with all others that are due, or runs without any graphs."""
        self._seen[signature] += 1
        is_due = self._seen[signature] > WARM_UP
        self._since_new = self._since_new + 1 if is_due else 0
        due = [
            known for known, steps in self._seen.items() if steps > WARM_UP or (steps == WARM_UP and known != signature)
        ]
        if is_due and (len(due) == len(self._seen) or self._since_new > PATIENCE):
            self._make_all(due, next(iter(inputs.values())).device)
        elif self._graphs:
            self.release()

    def _make_all(self, signatures: Sequence[InputSignature], device: torch.device) -> None:
        """Record these sizes, the largest first."""
        self.release()
        begin = time.perf_counter()
        try:
            self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]
            record = self._record or self._cuda_recorder()
            for signature in sorted(signatures, key=_num_numbers, reverse=True):
                gc.collect()  # what is left of the graph before may hang in cycles
                inputs = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape, dtype in signature}
                graph = _RecordedSize(self._forward, inputs, self._parameters, self._sums, record, self._held())
                self._graphs[signature] = graph
        except (RuntimeError, TypeError) as error:  # out of memory among them, which the steps without are not
            self._failed = True
            reason = str(error).strip().splitlines()[0][:200].rstrip(".")
        else:
            log.info("Recording CUDA graphs of %d sizes took %.1f s.", len(signatures), time.perf_counter() - begin)
            return
        self.release()
        torch.cuda.empty_cache()
        self._tell(f"CUDA graphs cannot be recorded here ({reason}). The run goes on without: the result is the same, "
                   "steps of small clips take longer.")  # fmt: skip

    def _cuda_recorder(self) -> Recorder:
        """The graphs of all sizes share their memory, since only one is at work at a time."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return lambda act: _record_cuda(act, self._pool)


def _num_numbers(signature: InputSignature) -> int:
    """In the inputs of a size."""
    return sum(math.prod(shape) for _, shape, _ in signature)


class _RecordedSize:
    """One size of clips. Its tensors stay where they are; what is new is copied into them.

    Of the pool it holds, once recorded, nothing but the output: what the forward saves ends with the recorded backward, so
    that the next size is recorded into the same memory.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        inputs: Mapping[str, Tensor],
        parameters: Sequence[nn.Parameter],
        sums: Sequence[Tensor],
        record: Recorder,
        held: object,
    ) -> None:
        self._inputs = dict(inputs)  # outside of the pool, as the sums are
        self._parameters, self._sums = parameters, sums
        args = [tensor for name, tensor in self._inputs.items() if name.isdigit()]
        named = {name: tensor for name, tensor in self._inputs.items() if not name.isdigit()}

        def run_forward() -> None:
            self._output = forward(*args, **named)

        def run_backward() -> None:
            found = torch.autograd.grad(self._output, parameters, self._grad)
            foreach_add_(list(sums), found)

        self._replay_forward = record(run_forward)
        self._replay_forward()
        self._grad = torch.empty_like(self._output)
        self._replay_backward = record(run_backward)
        self._output = self._output.detach()
        self._held = held
        self._waiting: weakref.ref[_Ticket] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the backward of the latest forward is still to come, and can."""
        return self._waiting is not None and self._waiting() is not None

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, "_Ticket"]:
        """The output, and a ticket for its backward, which is waited for as long as somebody has that."""
        for kept, given in zip(self._inputs.values(), inputs, strict=True):
            kept.copy_(given)
        self._replay_forward()
        ticket = _Ticket()
        self._waiting = weakref.ref(ticket)
        return self._output.clone(), ticket

    def backward(self, grad: Tensor, ticket: "_Ticket") -> None:
        """Add to the parameters' gradients."""
        is_latest = self._waiting is not None and self._waiting() is ticket
        assert is_latest, "the backward of a graph is run once, before its next forward"
        self._waiting = None
        pairs = [pair for pair in zip(self._parameters, self._sums, strict=True) if pair[0].grad is not pair[1]]
        fresh = [total for parameter, total in pairs if parameter.grad is None]
        if fresh:
            foreach_zero_(fresh)
        found = [(total, parameter.grad) for parameter, total in pairs if parameter.grad is not None]
        if found:  # of a batch that ran without
            foreach_copy_([total for total, _ in found], [grad for _, grad in found])
        for parameter, total in pairs:
            parameter.grad = total
        self._grad.copy_(grad)
        self._replay_backward()


class _Ticket:
    """The right to one backward."""


class _Replay(torch.autograd.Function):
    """A graph's forward and backward as autograd sees them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, graph: _RecordedSize, *inputs: Tensor) -> Tensor:
        del gate
        output, ctx.ticket = graph.forward(inputs)
        ctx.graph, ctx.num_inputs = graph, len(inputs)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        (grad,) = grads
        ctx.graph.backward(grad, ctx.ticket)
        return (None,) * (2 + ctx.num_inputs)


def _record_cuda(act: Act, pool: Any) -> Act:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    first: BaseException | None = None
    try:
        # Other threads copy batches meanwhile, which is none of the graph's business.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                act()
            except BaseException as error:
                first = error  # the end of the recording raises another, which says nothing
                raise
    except BaseException as error:
        _leave_recording(stream, pool)
        raise (first or error) from None
    return graph.replay


def _leave_recording(stream: torch.cuda.Stream, pool: Any) -> None:
    """What torch 2.11 leaves undone after a failure: its stream, memory and random numbers are still the graph's."""
    torch.cuda.set_stream(stream)
    with contextlib.suppress(RuntimeError):  # it was done
        end_allocating_to_pool(stream.device.index, pool)
    generator = torch.cuda.default_generators[stream.device.index]
    generator.graphsafe_set_state(generator.clone_state())
