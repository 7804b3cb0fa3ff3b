"""DoRA (Liu et al., 2024, arXiv:2402.09353): a LoRA that trains the lengths of the weight's columns apart.

W' = (W + s B A) diag(m / |W + s B A|), with the lengths of columns, as the paper writes it and LyCORIS and ComfyUI read it: one
number m for each input. As a forward it is a LoRA whose input is scaled: y = W (c x) + s B A (c x), c = m / |W + s B A|. As the
paper says (section 4.3), no gradient goes through the lengths. peft has the lengths of rows, which ComfyUI does not apply.

Legend: r rank, in/out widths; A [r, in], B [out, r], m, c [in].
"""

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...memory.sharded import whole
from ...settings.adapter import AdapterOptions
from ..around import Around
from ..keys import official_key
from ..kind import AdapterKind, KeptBytes, LayerShape
from ..other_files import read_state, write_state
from ..peft_hooks import factors_of, is_at_work, own_forward, rank_and_alpha
from ..wrapped import match_state
from . import lora

KIND = "dora"
MAGNITUDE = "dora_scale"  # as files have it, [1, in]
_SQUARES = "_dora_squares"  # of the base's columns, [in] fp32: no buffer, because swapped blocks hold no others


def put_on(model: nn.Module, options: AdapterOptions, seed: int) -> list[tuple[str, nn.Parameter]]:
    """As a LoRA, with the lengths of the base's columns for m. They are read from the weights, also quantized ones."""
    parameters = dict(lora.put_on(model, options, seed))
    found: list[tuple[str, nn.Parameter]] = []
    for path, layer in lora.layers(model).items():
        base = factors_of(layer).base
        with whole(model.get_submodule(".".join(path.split(".")[:2]))), torch.no_grad():
            squares = _squares(base)
        device = factors_of(layer).down.device
        layer.register_parameter(MAGNITUDE, nn.Parameter(squares.sqrt().to(device)[None].contiguous()))
        layer.__dict__[_SQUARES] = squares.to(device)
        layer.forward = MethodType(_forward, layer)
        found += [(name, weight) for name, weight in parameters.items() if name.startswith(f"{path}.")]
        found.append((f"{path}.{MAGNITUDE}", layer.get_parameter(MAGNITUDE)))
    return found


def _squares(base: Any) -> Tensor:
    """Squared lengths of the columns of a layer's weight [out, in], fp32 [in]."""
    weight = _weight(base)
    return torch.linalg.vector_norm(weight, dim=0, dtype=torch.float32).square()


def _weight(base: Any) -> Tensor:
    """[out, in]; of a quantized layer in fp32."""
    return base.matrix(torch.float32) if hasattr(base, "matrix") else base.weight


def _forward(layer: Any, x: Tensor) -> Tensor:
    """x [..., in] -> [..., out], in x's dtype."""
    if not is_at_work(layer):
        return own_forward(layer, x)
    scaled = _before(layer, x)
    return _after(layer, scaled, factors_of(layer).base(scaled))


def _before(layer: Any, x: Tensor) -> Tensor:
    """c x [..., in]."""
    return x * _column_scales(layer).to(x.dtype)


def _after(layer: Any, scaled: Tensor, y: Tensor) -> Tensor:
    """The result [..., out], of c x [..., in] and the base's result y [..., out]."""
    _, down, up, scale, dropout, drops = factors_of(layer)
    hidden = functional.linear(dropout(scaled), down.to(scaled.dtype))
    if drops is not None:
        hidden = drops(hidden)
    return y + functional.linear(hidden, (scale * up).to(scaled.dtype))


def _around(layer: nn.Module) -> Around:
    factors = factors_of(layer)
    lengths = layer.get_parameter(MAGNITUDE)
    return Around(MethodType(_after, layer), (factors.down, factors.up), MethodType(_before, layer), (lengths,))


def _column_scales(layer: Any) -> Tensor:
    """m / |W + s B A|, [in] fp32."""
    base, down, up, scale, *_ = factors_of(layer)
    with torch.no_grad():
        squares = vars(layer)[_SQUARES]
        if squares.device != down.device:
            squares = vars(layer)[_SQUARES] = squares.to(down.device)
        weight = _weight(base)
        both = (up.t().to(weight.dtype) @ weight).float().mul_(down).sum(0).mul_(2 * scale)
        own = ((up.t() @ up) @ down).mul_(down).sum(0).mul_(scale**2)
        lengths = (squares + both + own).clamp_(min=1e-12).sqrt_()
    return layer.get_parameter(MAGNITUDE)[0] / lengths


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that carry a DoRA, by official path, block by block."""
    return {path: layer for path, layer in lora.layers(model).items() if MAGNITUDE in vars(layer)["_parameters"]}


def state(model: nn.Module) -> dict[str, Tensor]:
    """As of a LoRA, and `diffusion_model.<path>.dora_scale` [1, in]."""
    if not layers(model):
        return {}
    found = lora.state(model)
    for path, layer in layers(model).items():
        found[f"diffusion_model.{path}.{MAGNITUDE}"] = (
            layer.get_parameter(MAGNITUDE).detach().to("cpu", copy=True).contiguous()
        )
    return found


def matched(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each weight of the model's DoRA with its tensor."""
    wanted: dict[str, tuple[nn.Parameter | None, float]] = {}
    for path, layer in layers(model).items():
        factors = factors_of(layer)
        wanted[official_key(path, "down")] = (factors.down, 0.0)
        wanted[official_key(path, "up")] = (factors.up, 0.0)
        wanted[official_key(path, "alpha")] = (None, rank_and_alpha(layer)[1])
        wanted[f"diffusion_model.{path}.{MAGNITUDE}"] = (layer.get_parameter(MAGNITUDE), 0.0)
    return match_state(wanted, tensors)


def light_forward(model: nn.Module) -> int:
    """The forward that the layers have from the start."""
    return len(layers(model))


def matrices(shape: LayerShape, rank: int, options: AdapterOptions) -> tuple[LayerShape, ...]:
    """A and B, and the lengths."""
    return *lora.matrices(shape, rank, options), (1, shape[1])


def kept(shape: LayerShape, rank: int, options: AdapterOptions, element_size: int) -> KeptBytes:
    """c x beside what a LoRA keeps, c and the lengths."""
    of_lora = lora.kept(shape, rank, options, element_size)
    casts = element_size * shape[1] + 4 * shape[1]
    return KeptBytes(of_lora.per_token + element_size * shape[1], of_lora.once + casts)


METHOD = AdapterKind(
    help="DoRA, a LoRA that trains the lengths of the weight's columns apart: often as good with half the rank, slower steps",
    put_on=put_on,
    layers=layers,
    state=state,
    matched=matched,
    light_forward=light_forward,
    matrices=matrices,
    kept=kept,
    to_file=write_state,
    from_file=lambda path: read_state(path, kind=KIND),
    weight_traffic=68.0,  # of a 14B model in bf16: benchmarks/results/methods-h200.json
    begins_at_base=True,
    is_plain=False,
    around=_around,
    scales_input=True,
    reads_weights=True,
    more_units=(2.0, 1.0),
    is_up=lora.METHOD.is_up,
)
