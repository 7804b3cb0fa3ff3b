"""Lion (Chen et al., 2023, arXiv:2302.06675): the sign of a mix of gradient and momentum, with one moment as its state.

Of a parameter w with gradient g and momentum m, at the learning rate l and the weight decay d:
w <- w (1 - l d) - l sign(beta1 m + (1 - beta1) g), and then m <- beta2 m + (1 - beta2) g.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..settings.optimizer import OptimizerOptions
from ..torch_compat import foreach_add_, foreach_lerp, foreach_mul_, foreach_sign_, foreach_sub_
from . import OptimizerMethod


class Lion(torch.optim.Optimizer):
    """Over parameters of one device; some ten launches for all of them. `step` uses the gradients up."""

    skips_bad_steps = True  # see `core.train.optimizers.update_if`

    def __init__(
        self, parameters: list[torch.nn.Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, with the gradients that are there; where `found_inf` is 1, weights and momentum stay as they are.

        Memory can run out only before the first change of either.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            if trained:
                self._update(group, trained)
        return loss

    def _update(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]  # of all: see `step`
        moments = [self.state[parameter]["exp_avg"] for parameter in trained]
        rate, (beta1, beta2) = group["lr"], group["betas"]
        made = 1.0 - getattr(self, "found_inf", torch.zeros((), device=trained[0].device))  # 1: the update is made
        updates = foreach_lerp(moments, gradients, 1 - beta1)
        foreach_sign_(updates)
        foreach_mul_(updates, -rate * made)
        decay = 1 - rate * group["weight_decay"] * made
        foreach_sub_(gradients, moments)
        foreach_mul_(gradients, (1 - beta2) * made)
        foreach_mul_(trained, decay)
        foreach_add_(trained, updates)
        foreach_add_(moments, gradients)


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    return Lion(
        parameters,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )


METHOD = OptimizerMethod(
    help="updates by sign, with half of adamw's memory; take a third to a tenth of adamw's learning_rate, and beta2 0.99",
    build=_build,
    state_bytes=4,
    update_bytes=4,
    state={"exp_avg": torch.float32},
    skips_bad_steps=True,
    uses=("beta1", "beta2"),
)
