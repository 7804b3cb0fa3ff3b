"""A limit for how much a LoRA may change the weights of each layer.

Legend: r rank, in/out widths of the linear layer; down (A) [r, in], up (B) [out, r].
"""

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .peft_hooks import factors_of, lora_layers


class NormLimit:
    """Scales both factors of a layer down by the same, where the norm of scale * up @ down is above the limit.

    `scale_weight_norms` of musubi-tuner and kohya's sd-scripts (`apply_max_norm_regularization`), but that the norm
    comes of the factors' products with themselves: |up @ down|^2 = sum((up^T up) * (down down^T)), [r, r] each.
    Nothing is allocated and the host waits for nothing, so that it can follow an update.
    """

    def __init__(self, model: nn.Module, limit: float) -> None:
        """`limit`: the largest Frobenius norm, above 0. ConfigError for an adapter that is no LoRA."""
        layers = [factors_of(layer) for layer in lora_layers(model).values()]
        if not layers:
            raise ConfigError("max_weight_norm is for LoRAs, and this adapter is none: set it to 0.")
        self._limit = limit
        self._limits = torch.full((len(layers),), limit, device=layers[0].down.device)
        self._pairs = [(layer.down, layer.up) for layer in layers]
        device, largest = layers[0].down.device, max(layer.down.shape[0] for layer in layers)
        self._scales = torch.tensor([abs(float(layer.scale)) for layer in layers], device=device)
        self._norms = torch.empty(len(layers), device=device)
        self._products = torch.empty(2, largest * largest, device=device)

    @torch.no_grad()
    def __call__(self, was_made: Tensor) -> None:
        """After an update; see `core.train.loop.AfterUpdate`."""
        for number, (down, up) in enumerate(self._pairs):
            rank = down.shape[0]
            of_up, of_down = (product[: rank * rank].view(rank, rank) for product in self._products)
            torch.mm(up.t(), up, out=of_up)
            torch.mm(down, down.t(), out=of_down)
            of_up.mul_(of_down)
            torch.sum(of_up, (0, 1), out=self._norms[number])
        # sqrt(limit / norm) where that is below 1: half of the correction on each factor
        norms = self._norms.clamp_(min=0).sqrt_().mul_(self._scales).clamp_(min=self._limit)
        factors = torch.div(self._limits, norms, out=norms).sqrt_()
        factors.sub_(1).mul_(was_made).add_(1)
        for number, pair in enumerate(self._pairs):
            for factor in pair:
                factor.mul_(factors[number])
