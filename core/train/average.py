"""The weights that a run shows: validated, previewed and saved. Those in training, or an average of them.

An average takes the place of the weights for as long as they are looked at, in their own memory, so that recorded CUDA
graphs see it; after that they are back, to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.setup import adapter_state, check_adapter, load_adapter
from ..errors import WanTrainError
from ..optimizers import OPTIMIZERS
from ..plan.sizes import AVERAGED_AT_ONCE
from ..settings.ema import EmaOptions
from ..settings.job import Job
from ..torch_compat import foreach_add_, foreach_copy_, foreach_mul_, foreach_sub_

Show = Callable[[], AbstractContextManager[None]]  # within it, the model has the weights to show


def decay_at(step: int, options: EmaOptions) -> float:
    """How much of the average stays at the update number `step` (1 is the first).

    As diffusers and SimpleTuner have it: 0 at the first, then min(decay, (1 + n) / (10 + n)) with n = step - 1.
    """
    if not options.warm_up:
        return options.decay
    return min(options.decay, step / (step + 9)) if step > 1 else 0.0


class Ema:
    """An exponential moving average of parameters, fp32 beside them: average += (1 - decay) (parameter - average)."""

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter], options: EmaOptions):
        """Begins with the parameters as they are; `model` carries them as its adapter."""
        self._model, self._parameters, self._options = model, parameters, options
        self._averages = [parameter.detach().clone() for parameter in parameters]
        self._step = 0
        most = max(AVERAGED_AT_ONCE, *(parameter.numel() for parameter in parameters))
        self._scratch = torch.empty(min(most, sum(p.numel() for p in parameters)), device=parameters[0].device)
        self._pieces = list(self._cut())

    @torch.no_grad()
    def __call__(self, was_made: Tensor) -> None:
        """After an update; see `core.train.loop.AfterUpdate`. The host counts one that was not made: the run ends of it."""
        self._step += 1
        if self._step % self._options.every:
            return
        share = was_made * (1 - decay_at(self._step, self._options))
        for parameters, averages, scratch in self._pieces:
            foreach_copy_(scratch, parameters)
            foreach_sub_(scratch, averages)
            foreach_mul_(scratch, share)
            foreach_add_(averages, scratch)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the model has the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The average as in a LoRA file, and the number of updates."""
        with self.shown():
            return {"step": self._step, "weights": adapter_state(self._model)}

    def check_state(self, state: Any) -> None:
        """Names, shapes, types, and that all is finite."""
        if not isinstance(state, dict) or state.keys() != {"step", "weights"} or not isinstance(state["weights"], dict):
            raise ValueError("the average of the weights (EMA) is no table of weights")
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError(
                f"the average of the weights (EMA) has made {state['step']!r} updates, which is no number of them"
            )
        try:
            check_adapter(self._model, state["weights"])
        except WanTrainError as error:
            raise ValueError(f"the average of the weights (EMA) is not this run's: {error}") from error

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place."""
        self._step = state["step"]
        with self.shown():
            load_adapter(self._model, state["weights"])

    @torch.no_grad()
    def _swap(self) -> None:
        for parameters, averages, scratch in self._pieces:
            foreach_copy_(scratch, parameters)
            foreach_copy_(parameters, averages)
            foreach_copy_(averages, scratch)

    def _cut(self) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """Parameters, averages and room for as many numbers, as many at once as there is room for."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            if start + parameter.numel() > len(self._scratch):
                yield _columns(found)
                found, start = [], 0
            end = start + parameter.numel()
            found.append((parameter, average, self._scratch[start:end].view_as(parameter)))
            start = end
        yield _columns(found)


def _columns(rows: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    parameters, averages, scratch = zip(*rows, strict=True)
    return list(parameters), list(averages), list(scratch)


@contextmanager
def averaged_by(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Within it the parameters are the optimizer's own average, as its `eval` has it. Its `train` would bring them back
    up to rounding alone, so they are kept meanwhile, in main memory.
    """
    own: Any = optimizer
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    own.eval()
    try:
        yield
    finally:
        own.train()
        with torch.no_grad():
            foreach_copy_(parameters, kept)


@dataclass(frozen=True)
class Averages:
    """What a run shows in the place of the weights in training, if anything."""

    ema: Ema | None = None
    shown: Show = nullcontext  # what validation and previews use
    saved: Show = nullcontext  # what the LoRA file holds
    beside: tuple[str, Show] | None = None  # what another file beside it holds, and the end of that file's name

    @property
    def of_checkpoints(self) -> Show | None:
        """The average that checkpoints keep beside the weights in training; None: there is none."""
        return self.ema.shown if self.ema is not None else None if self.saved is nullcontext else self.saved


def averages_of(
    job: Job, model: nn.Module, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
) -> Averages:
    """What the job says of averages; `check_averages` has passed it."""
    if OPTIMIZERS.get(job.optimizer.name).averages_with(job.optimizer):

        def show() -> AbstractContextManager[None]:
            return averaged_by(optimizer, parameters)

        return Averages(shown=show, saved=show)
    if not job.ema.use:
        return Averages()
    ema = Ema(model, parameters, job.ema)
    shown = ema.shown if job.ema.shown == "ema_only" else nullcontext
    if job.ema.lora == "ema":
        return Averages(ema, shown, ema.shown, ("trained", nullcontext))
    return Averages(ema, shown, nullcontext, ("ema", ema.shown))
