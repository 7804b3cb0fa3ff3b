"""AdamW whose two moments may wait in main memory between updates: "paged", without the driver's pages.

The moments take twice what the fp32 LoRA does: 0.6 GB at rank 16 in the 14B model, 2.5 GB at rank 64. The update reads and
writes each number once, so that they can pass through the device page by page: one is copied in and another out while
those between are updated. The numbers are the same. Unlike bitsandbytes' paged optimizers this needs no managed memory,
which Windows does not page, and it leaves no tensor out for being small.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..pinned import HostBuffer
from .copies import CudaEvent, open_stream

PAGE = 2**23  # parameters of a page
NUM_SLOTS = 2  # pages on the device at once
_MOMENTS = ("exp_avg", "exp_avg_sq")
_Trained = tuple[Tensor, Tensor, Tensor]  # a parameter and its two moments


@dataclass(frozen=True)
class _Page:
    """Consecutive parameters, and their moments [2, N] fp32 in main memory."""

    parameters: list[Tensor]
    buffer: HostBuffer  # whose end unpins the memory
    moments: Tensor

    def views(self, moments: Tensor) -> "Iterator[_Trained]":
        """Each parameter with its two moments, as they lie in `moments` [2, at least N]."""
        first, second = moments
        start = 0
        for parameter in self.parameters:
            end = start + parameter.numel()
            yield parameter, first[start:end].view_as(parameter), second[start:end].view_as(parameter)
            start = end


class AdamW(torch.optim.AdamW):
    """torch's AdamW, without amsgrad, over fp32 parameters of one device; `offload` moves its moments any time.

    The state has the same names and shapes either way, and `state_dict` of one can be loaded by the other.
    """

    _offloaded: "_Offloaded | None" = None

    @property
    def is_offloaded(self) -> bool:
        """Whether the moments are in main memory."""
        return self._offloaded is not None

    def offload(self, on: bool) -> None:
        """Move the moments to main memory or back. If memory runs out, or cannot be pinned (RunError), nothing has changed."""
        if on == self.is_offloaded:
            return
        if on:
            self._offloaded = _Offloaded(self.param_groups, self.state)
            return
        assert self._offloaded is not None
        self._offloaded.drain()
        back = {
            parameter: {name: self.state[parameter][name].to(parameter.device, copy=True) for name in _MOMENTS}
            for parameter in _parameters(self.param_groups)
        }
        for parameter, moments in back.items():
            self.state[parameter].update(moments)
        self._offloaded = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, with the gradients that are there."""
        if self._offloaded is None:
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._offloaded.visit(self._update)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's, once all moments are where they belong."""
        if self._offloaded is not None:
            self._offloaded.drain()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; offloaded moments don't visit the device."""
        if self._offloaded is None:
            super().load_state_dict(state_dict)
            return
        self._offloaded.drain()
        saved: Mapping[int, Mapping[str, Tensor]] = state_dict["state"]
        for index, parameter in enumerate(_parameters(self.param_groups)):
            for name, value in self.state[parameter].items():
                value.copy_(saved[index][name]) if index in saved else value.zero_()
        for own, group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})

    def _update(self, page: list[_Trained], group_index: int) -> None:
        """The update of parameters of a group, whose moments are on the device."""
        trained = [(p, p.grad, first, second) for p, first, second in page if p.grad is not None]
        group = self.param_groups[group_index]
        adamw(
            [p for p, *_ in trained],
            [gradient for _, gradient, *_ in trained],
            [first for _, _, first, _ in trained],
            [second for _, _, _, second in trained],
            [],
            [self.state[p]["step"] for p, *_ in trained],
            foreach=group["foreach"],
            fused=group["fused"],
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


class _Offloaded:
    """The pages, and the slots on the device that they visit."""

    def __init__(self, groups: list[dict[str, Any]], state: dict[Tensor, dict[str, Tensor]]) -> None:
        """Takes over the moments in `state`, or begins with zeros where there are none."""
        parameters = _parameters(groups)
        self._device = parameters[0].device
        parts = [(index, part) for index, group in enumerate(groups) for part in _parts(group["params"])]
        self._pages = [_make_page(part) for _, part in parts]
        self._groups = [index for index, _ in parts]  # of each page
        most = max(page.moments.shape[1] for page in self._pages)
        number = min(NUM_SLOTS, len(self._pages))
        self._slots = [torch.empty(2, most, device=self._device) for _ in range(number)]
        # A page has one slot, whatever the step, so that these stay.
        self._visits = [list(page.views(self._slots[i % number])) for i, page in enumerate(self._pages)]
        self._left: list[CudaEvent] = [None] * number  # when what was in the slot last is in main memory
        self._arriving, self._leaving = open_stream(self._device), open_stream(self._device)
        place = self._device if groups[0]["fused"] else torch.device("cpu")
        steps = {parameter: torch.zeros((), device=place) for parameter in parameters if parameter not in state}
        for page in self._pages:  # nothing fails from here on
            for parameter, *moments in page.views(page.moments):
                own = state[parameter]
                if parameter in steps:
                    own["step"] = steps[parameter]
                for name, moment in zip(_MOMENTS, moments, strict=True):
                    own[name] = moment.copy_(own[name]) if name in own else moment.zero_()

    def visit(self, update: Callable[[list[_Trained], int], None]) -> None:
        """Let `update` see each page, with the index of its group, on the device, and keep what it makes of it."""
        arrived = self._fetch(0)
        for index, page in enumerate(self._pages):
            self._arriving.hold_compute(arrived)
            if index + 1 < len(self._pages):
                arrived = self._fetch(index + 1)
            slot = index % len(self._slots)
            update(self._visits[index], self._groups[index])
            on_device = self._slots[slot][:, : page.moments.shape[1]]
            self._left[slot] = self._leaving.copy(page.moments, on_device, self._leaving.mark())

    def drain(self) -> None:
        """Let the host wait until all moments are in main memory."""
        self._leaving.drain()

    def _fetch(self, index: int) -> CudaEvent:
        page, slot = self._pages[index], index % len(self._slots)
        target = self._slots[slot][:, : page.moments.shape[1]]
        # The page itself left before what was in this slot last did, or with it.
        return self._arriving.copy(target, page.moments, self._left[slot])


def hold_state(optimizer: torch.optim.Optimizer, *, offloaded: bool) -> bool:
    """Put the state of `optimizer` where asked; False if it cannot leave the device. RunError as `AdamW.offload`."""
    if not isinstance(optimizer, AdamW):
        return not offloaded
    optimizer.offload(offloaded)
    if offloaded and torch.cuda.is_available():
        torch.cuda.empty_cache()  # of small tensors, whose memory no large one can have
    return True


def offloaded_bytes(num_params: int) -> tuple[int, int]:
    """Bytes on the device and in main memory of the moments of `num_params` parameters, offloaded."""
    return 8 * min(NUM_SLOTS * PAGE, num_params), 8 * num_params


def _parameters(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group["params"]]


def _parts(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if part and size + parameter.numel() > PAGE:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel()
    yield part


def _make_page(parameters: list[Tensor]) -> _Page:
    number = sum(parameter.numel() for parameter in parameters)
    buffer = HostBuffer(8 * number, pinned=parameters[0].device.type == "cuda")
    return _Page(parameters, buffer, buffer.bytes.view(torch.float32).view(2, number))
