"""Linear layers that see the same input, whose adapters are no plain LoRA: autograd differentiates these, and nothing else.

The base's products run as in `linear_groups`. What an adapter does before and after its base's is a small graph of its own,
which begins at the input and at the base's result, and is gone through in the middle of the block's backward. What the graph
keeps of the input is made again, as all inputs are, where the block has noted how.

Legend: M = B L rows of the input, in/out widths of a layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..adapters.around import Around, around_of
from ..adapters.peft_hooks import is_at_work
from ..memory.entry import entry
from ..memory.products import PART, LinearProduct, part_of


class _Graph(NamedTuple):
    """Of one layer with an adapter."""

    given: GradientEdge | None  # what the base was given, where that is not the input itself
    base: GradientEdge  # the base's result
    end: GradientEdge  # the layer's


class GroupGraphs(NamedTuple):
    """Of a group."""

    samples: int
    start: GradientEdge  # the input
    each: tuple[_Graph | None, ...]  # None for a layer without an adapter


class GraphGroup:
    """One layer or some, of which one at least has such an adapter."""

    needs_input = False  # for the gradients of its parameters: the graphs have what they need
    has_graphs = True

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Raises KeyError for a layer that `use_products` has passed over."""
        self.layers = tuple(layers)
        self.parts: tuple[LinearProduct, ...] = tuple(part_of(layer) for layer in layers)
        self.arounds: tuple[Around | None, ...] = tuple(around_of(layer) for layer in layers)
        arounds = filter(None, self.arounds)
        self.parameters = [p for around in arounds for p in around.parameters if p.requires_grad]

    @property
    def is_current(self) -> bool:
        """Whether the layers are those that they were."""
        each = zip(self.layers, self.parts, self.arounds, strict=True)
        return all(vars(layer).get(PART) is part and around_of(layer) is around for layer, part, around in each)

    @property
    def is_at_work(self) -> bool:
        """Whether the layers' adapters are."""
        return all(around is None or is_at_work(layer) for layer, around in zip(self.layers, self.arounds, strict=True))

    def forward(self, x: Tensor, samples: int, *, keeps: bool) -> tuple[list[Tensor | None], GroupGraphs | None]:
        """x [M, in] -> each result [M, out], None for one that nobody reads; and, where `keeps`, the adapters' graphs."""
        with torch.set_grad_enabled(keeps):
            x_BLI = x.unflatten(0, (samples, -1))
            start = entry(x_BLI) if keeps else x_BLI
            results: list[Tensor | None] = []
            graphs: list[_Graph | None] = []
            for part, around in zip(self.parts, self.arounds, strict=True):
                is_read = not part.is_unread(part.layer)
                if around is None:
                    with torch.no_grad():
                        results.append(part.product.forward(x) if is_read else None)
                    graphs.append(None)
                    continue
                given = start if around.before is None else around.before(start)
                if is_read or around.reads_base:
                    with torch.no_grad():
                        base = part.product.forward(given.detach().flatten(0, 1)).unflatten(0, (samples, -1))
                else:  # a stand-in: the adapter is differentiated all the same
                    base = given.new_empty(1).expand(*given.shape[:2], part.out_features)
                base = entry(base) if keeps else base
                y = around.after(given, base)
                results.append(y.detach().flatten(0, 1) if is_read else None)
                if keeps:
                    edge = None if around.before is None else get_gradient_edge(given)
                    graphs.append(_Graph(edge, get_gradient_edge(base), get_gradient_edge(y)))
            return results, GroupGraphs(samples, get_gradient_edge(start), tuple(graphs)) if keeps else None

    def rows_for(self, number: int, grad: Tensor) -> None:
        """As `LinearGroup` has it; gradients of a base's result come out of a graph here."""

    def backward(
        self,
        grads: Sequence[Tensor],
        graphs: GroupGraphs | None,
        *,
        of_x: bool,
        rows: list[Any] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor | None, None, list[Tensor]]:
        """The gradients of x [M, in], where `of_x`, and of the `parameters`, in their order."""
        assert graphs is not None
        of_x_BLI: Tensor | None = None
        of_parameters: list[Tensor] = []
        for part, around, graph, grad in zip(self.parts, self.arounds, graphs.each, grads, strict=True):
            if around is None or graph is None:
                if of_x:
                    of_x_BLI = _through_base(part, grad.unflatten(0, (graphs.samples, -1)), of_x_BLI)
                continue
            of_x_BLI, own = _through(part, around, graph, graphs, grad, of_x_BLI, of_x=of_x)
            of_parameters += own
        return None if of_x_BLI is None else of_x_BLI.flatten(0, 1), None, of_parameters

    def factor_gradients(self, x: Tensor | None, of_seen: object, of_parameters: list[Tensor]) -> list[Tensor]:  # noqa: ARG002
        """Of `parameters`, as `backward` gave them."""
        return of_parameters


def _through(
    part: LinearProduct,
    around: Around,
    graph: _Graph,
    graphs: GroupGraphs,
    grad: Tensor,
    onto: Tensor | None,
    *,
    of_x: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of x [B, L, in], added to `onto`, and of one layer's `around.parameters`; grad [M, out]."""
    given = graph.given
    to_given = of_x or given is not None
    wanted: list[Any] = [graph.base, *([given or graphs.start] if to_given else ()), *_trained(around.of_after)]
    grad = grad.unflatten(0, (graphs.samples, -1))
    of_base, *found = torch.autograd.grad([graph.end], wanted, [grad], allow_unused=True)
    if not to_given:
        return None, found
    of_given, *own = found
    if given is None:
        if of_given is not None:
            onto = of_given if onto is None else onto.add_(of_given)
        return _through_base(part, of_base, onto), own
    of_given = _through_base(part, of_base, of_given)
    starts = (graphs.start,) if of_x else ()
    of_before: list[Any] = [*starts, *_trained(around.of_before)]
    found = torch.autograd.grad([given], of_before, [of_given])
    if of_x:
        onto = found[0] if onto is None else onto.add_(found[0])
    return onto, [*own, *found[len(starts) :]]


def _trained(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _through_base(part: LinearProduct, grad: Tensor, onto: Tensor | None) -> Tensor:
    """The gradient of the base's input [B, L, in] from that of its result [B, L, out]; added to `onto`, in its memory."""
    found = part.product.gradient(grad.flatten(0, 1), None if onto is None else onto.flatten(0, 1))
    return found.unflatten(0, grad.shape[:2])
