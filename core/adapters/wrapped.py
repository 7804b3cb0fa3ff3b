"""A linear layer with a change of its weight that is trained: what LoKr and LoHa have in common, on a base of any format.

peft's own layers of these kinds know no base but torch's Linear, and multiply in fp32; the arithmetic here is that of the base.
The formulas are those of LyCORIS (Yeh et al., 2023, arXiv:2309.14859), whose names the parameters and files have.

L tokens (any leading axes), in/out widths of the linear layer.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from ..settings.adapter import AdapterOptions
from .around import Around
from .drops import drops_of
from .keys import sort_key
from .places import Place, target_layers


class WrappedLinear(nn.Module):
    """base(x) + drops(change(dropout(x))); the parameters that are trained are fp32, on the device of the base."""

    kind = ""
    reads_base = False  # see `Around`

    def __init__(self, base: nn.Module, place: Place, options: AdapterOptions) -> None:
        super().__init__()
        self.base_layer = base
        self.rank, self.alpha = place.rank, place.alpha
        self.lora_dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.drops = nn.Sequential(*drops_of(options, has_ranks=False))
        self._disable_adapters = False  # as peft's layers have it, for `without_adapter`
        self.merged = False

    @property
    def disable_adapters(self) -> bool:
        """Whether the change is left out."""
        return self._disable_adapters

    @property
    def in_features(self) -> int:
        """Of the base."""
        return self.base_layer.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        """Of the base."""
        return self.base_layer.out_features  # type: ignore[return-value]

    @property
    def weight(self) -> Any:
        """Of the base."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """Of the base."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        y = self.base_layer(x)
        return y if self._disable_adapters else self.after(x, y)

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """The result [..., out], of x [..., in] and the base's result y [..., out]."""
        return y + self.drops(self.change(self.lora_dropout(x)))

    def change(self, x: Tensor) -> Tensor:
        """What is added, [..., out] for x [..., in]."""
        raise NotImplementedError

    def add(self, name: str, shape: tuple[int, int]) -> None:
        """A trained matrix, which is filled by `draw`."""
        device = next((tensor.device for tensor in (*self.base_layer.parameters(), *self.base_layer.buffers())), None)
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device)))

    def factors(self) -> dict[str, nn.Parameter]:
        """The trained matrices by their names in files."""
        return dict(self.named_parameters(recurse=False))

    def draw(self, seed: int, path: str, names: tuple[str, ...]) -> None:
        """Fill the matrices `names` from U(-1/sqrt(columns), 1/sqrt(columns)), by the seed and the layer's name alone."""
        digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
        for name in names:
            matrix = self.get_parameter(name)
            bound = 1.0 / math.sqrt(matrix.shape[1])
            # drawn on the CPU, because every device has a stream of its own
            matrix.data = torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator).to(matrix.device)


def wrap(
    model: nn.Module, options: AdapterOptions, seed: int, cls: type[WrappedLinear]
) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a `cls` around each of its layers that gets an adapter; the parameters by name."""
    targets = target_layers(model, options)
    model.requires_grad_(False)
    parameters: list[tuple[str, nn.Parameter]] = []
    for path, (base, place) in targets.items():
        layer = cls(base, place, options)
        layer.train(base.training)
        layer.start(seed, path)  # type: ignore[attr-defined]
        above, _, name = path.rpartition(".")
        setattr(model.get_submodule(above), name, layer)
        parameters += [(f"{path}.{name}", parameter) for name, parameter in layer.factors().items()]
    return parameters


def wrapped_layers(model: nn.Module, kind: str) -> Mapping[str, WrappedLinear]:
    """The layers of this kind, by official path, block by block."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, WrappedLinear)}
    return {name: found[name] for name in sorted(found, key=sort_key) if found[name].kind == kind}


def around(layer: nn.Module) -> Around:
    """What a layer of these does around its base."""
    assert isinstance(layer, WrappedLinear)
    return Around(layer.after, tuple(layer.factors().values()), reads_base=layer.reads_base)


def wrapped_state(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """`diffusion_model.<path>.<matrix>` and `.alpha` of each layer: float32 copies on the CPU."""
    found: dict[str, Tensor] = {}
    for path, layer in wrapped_layers(model, kind).items():
        for name, matrix in layer.factors().items():
            found[f"diffusion_model.{path}.{name}"] = matrix.detach().to("cpu", torch.float32, copy=True).contiguous()
        found[f"diffusion_model.{path}.alpha"] = torch.tensor(float(layer.alpha))
    return found


def match_state(
    wanted: Mapping[str, tuple[nn.Parameter | None, float]], tensors: Mapping[str, Tensor]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its tensor. `wanted`: by key a parameter, or None and the number that the key must hold.

    ModelFileError where they do not fit.
    """
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    for key, (parameter, number) in wanted.items():
        if key not in tensors:
            raise ModelFileError(
                f"The adapter lacks '{key}', which this model trains: choose the same kind and targets."
            )
        tensor = tensors[key]
        if parameter is None:
            if tensor.numel() != 1 or not math.isclose(float(tensor), number, rel_tol=1e-6):
                raise ModelFileError(
                    f"The adapter was saved with another '{key}' than {number:g}: set the same alpha and rank."
                )
        elif tensor.shape != parameter.shape:
            raise ModelFileError(
                f"The adapter's '{key}' has the shape {list(tensor.shape)}, the model's {list(parameter.shape)}: set the same"
                " rank, options of its kind and base model."
            )
        else:
            pairs.append((parameter, tensor))
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        raise ModelFileError(
            f"The adapter holds '{unknown[0]}', which this model does not train: choose the same targets."
        )
    return pairs


def match_wrapped(model: nn.Module, tensors: Mapping[str, Tensor], kind: str) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of the layers with its tensor of a state; ModelFileError where they do not fit."""
    wanted: dict[str, tuple[nn.Parameter | None, float]] = {}
    for path, layer in wrapped_layers(model, kind).items():
        wanted |= {f"diffusion_model.{path}.{name}": (matrix, 0.0) for name, matrix in layer.factors().items()}
        wanted[f"diffusion_model.{path}.alpha"] = (None, layer.alpha)
    return match_state(wanted, tensors)


def no_light_forward(model: nn.Module) -> int:  # noqa: ARG001
    """The layers' own forward is the fastest that there is."""
    return 0
