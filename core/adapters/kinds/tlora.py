"""T-LoRA (Soboleva et al., 2025, arXiv:2507.05964): a LoRA of which fewer ranks are trained, the noisier a sample is.

At high noise a model learns the few clips by heart, their background and pose, and not the concept; the ranks that are left
for it there are few. See `rank_gate` for how many. Its file is a LoRA's, and ComfyUI applies all of it at every noise level.

Legend: r rank, in/out widths of the linear layer; down (A) [r, in], up (B) [out, r].
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...settings.adapter import AdapterOptions
from ..drops import drops_of
from ..fused import fuse_adapter
from ..peft_hooks import drops_on, factors_of, put_drops
from ..rank_gate import GatedRanks, RankGate
from . import lora


def put_on(model: nn.Module, options: AdapterOptions, seed: int) -> list[tuple[str, nn.Parameter]]:
    """As a LoRA; `model.rank_gate`, which the model tells its timesteps, is the gate of all layers."""
    parameters = lora.put_on(model, options, seed)
    gate = RankGate(options.tlora_min_rank, options.tlora_power)
    gate.train(model.training)
    model.rank_gate = gate
    for layer in lora.layers(model).values():
        down = factors_of(layer).down
        gated = GatedRanks(gate, len(down)).train(layer.training)
        put_drops(layer, nn.Sequential(*drops_of(options, has_ranks=True), gated).train(layer.training))
        if options.tlora_orthogonal:
            _turn_apart(down)
    fuse_adapter(model)  # peft's own forward knows nothing of ranks that are left out
    return parameters


def _turn_apart(down: nn.Parameter) -> None:
    """Rows of A at right angles, each as long as it is on average: sqrt(1/3). As drawn where there are more than columns."""
    rank, width = down.shape
    if rank > width:
        return
    columns = torch.linalg.qr(down.detach().t().to("cpu", torch.float64)).Q  # [in, r]
    down.data = (columns.t() * (1 / 3) ** 0.5).to(down).contiguous()


def layers(model: nn.Module) -> Mapping[str, nn.Module]:
    """The layers that carry a T-LoRA, by official path, block by block."""
    return {path: layer for path, layer in lora.layers(model).items() if _is_gated(drops_on(layer))}


def _is_gated(drops: Any) -> bool:
    return drops is not None and any(isinstance(each, GatedRanks) for each in drops)


METHOD = replace(
    lora.METHOD,
    help="T-LoRA, a LoRA that trains fewer ranks the noisier a sample is: for few clips, which it learns less by heart",
    put_on=put_on,
    layers=layers,
)
