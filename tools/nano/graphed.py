"""A training step as one CUDA graph: small models are bound by the launching of their kernels, not by their work."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 4  # steps before the capture: they compile, and let the optimizer make its state


class Graphed:
    """Calls `step`; on a GPU records it once and replays the recording. What `step` returns is overwritten each time.

    The step may draw from torch's default generator; it must not read a value back to the CPU.
    """

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = torch.empty(0)

    def __call__(self) -> Tensor:
        self._calls += 1
        if not torch.cuda.is_available():
            return self._step()
        if self._calls <= WARM_UP:
            return self._on_side_stream()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._step()
        self._graph.replay()
        return self._result

    def _on_side_stream(self) -> Tensor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._step()
        torch.cuda.current_stream().wait_stream(side)
        return result


class Averaged:
    """Exponential moving average of parameters."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        torch._foreach_lerp_(self.averages, self.parameters, 1 - self.decay)

    @torch.no_grad()
    def store(self) -> None:
        """Write the averages into the model."""
        torch._foreach_copy_(self.parameters, self.averages)


class Clock:
    """How far a training is that ends after `steps`, or after `stop` seconds where that is sooner."""

    def __init__(self, steps: int, stop: float) -> None:
        self._steps, self._stop = steps, stop
        self._start = time.perf_counter()
        self._seconds = 0.0

    def read(self) -> float:
        """Seconds since the start; what `done` then goes by. To be called when the GPU has come to its end."""
        self._seconds = time.perf_counter() - self._start
        return self._seconds

    def done(self, step: int) -> float:
        """The part that is over at this step, 0 to 1."""
        return min(1.0, max(step / self._steps, self._seconds / self._stop))


def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def adamw(parameters: Sequence[torch.nn.Parameter], weight_decay: float) -> tuple[torch.optim.AdamW, Tensor]:
    """AdamW that can be recorded, and its learning rate: a tensor to be filled before each step."""
    place = parameters[0].device
    on_gpu = place.type == "cuda"
    rate = torch.zeros((), device=place)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay, capturable=on_gpu, fused=True
    )
    return optimizer, rate
