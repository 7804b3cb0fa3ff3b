"""All that this package knows of peft's inside: how it is imported, how it puts a LoRA on, what its layers are called.

peft has no public way to do these, so a new release may change them. The range that is tested, by `python run.py test --peft
oldest` and `--peft newest`, stands in `TESTED`. peft is imported where it is used: it takes seconds, and most users of this
package do not need it.
"""

import contextlib
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..hidden import hidden
from ..packages import unusable
from ..settings.adapter import AdapterOptions
from ..switching import switching_soon
from .light_import import import_peft
from .places import Place

TESTED = ("0.16.0", "0.21.2")  # oldest and newest
_ADAPTER = "default"  # peft's own name for the first
_DROPS = "rank_drops"
_INJECTING = threading.Lock()  # what stands in a module's place while peft works is one for all threads
_NOT_FOR_ADAPTERS = ("bitsandbytes", "scipy", "sklearn", "torchaudio", "torchvision")


class Factors(NamedTuple):
    """A LoRA layer as it computes: base(x) + scale * drops(dropout(x) down^T) up^T."""

    base: nn.Module
    down: nn.Parameter  # [r, in], fp32
    up: nn.Parameter  # [out, r], fp32
    scale: float
    dropout: nn.Module  # nn.Identity where there is none
    drops: nn.Module | None  # what leaves out some ranks, given x down^T [B, ..., r]; see `drops`


def import_adapters() -> None:
    """Import peft now rather than at the first use, in a process of ours: it takes seconds.

    Most of them go to transformers and its like, which peft does without here, and to packages that it imports where it finds
    them, for what is not used here: it does not find them. One that does not fit the PyTorch beside it, as torchvision in many
    a ComfyUI, then does no harm.
    ConfigError with the command to run if peft is not there, or can't be imported.
    """
    try:
        # transformers, where it is there already, has looked for the others and relies on them; and where peft is, nobody need
        # miss them.
        with hidden(*(() if {"transformers", "peft"} & sys.modules.keys() else _NOT_FOR_ADAPTERS)):
            import_peft()
    except Exception as error:  # a package that does not fit its neighbours raises anything
        raise unusable("peft", error) from error


class _Importing:
    """What is imported beside other work, once in a process."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._try, daemon=True, name="peft")
            self._thread.start()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        import_adapters()

    def _try(self) -> None:
        with (
            switching_soon(),
            contextlib.suppress(Exception),
        ):  # of whatever is installed: `finish` tries again, and tells
            import_adapters()


_IMPORTING = _Importing()


def begin_importing_adapters() -> None:
    """As `import_adapters`, in a thread of its own, while a model is read.

    Until `finish_importing_adapters` nobody may import the compiler, which peft imports too, or a package hidden from it.
    """
    _IMPORTING.begin()


def finish_importing_adapters() -> None:
    """Wait until peft is there. ConfigError if it cannot be imported."""
    _IMPORTING.finish()


def inject_lora(model: nn.Module, layers: Mapping[str, tuple[nn.Module, Place]], options: AdapterOptions) -> None:
    """Put peft's LoRA on `layers` of `model`, by their names in it; the caller initialises the factors.

    The global random state stays as it is.
    """
    import peft
    from peft.tuners.lora import Linear as LoraLinear

    most = Counter(place for _, place in layers.values()).most_common(1)[0][0]
    others = {name: place for name, (_, place) in layers.items() if place != most}
    config: Any = peft.LoraConfig(
        r=most.rank,
        lora_alpha=most.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        rank_pattern={name: place.rank for name, place in others.items()},
        alpha_pattern={name: place.alpha for name, place in others.items()},
        lora_dropout=options.dropout,
        target_modules="|".join(re.escape(name) for name in layers),  # a string is matched as a whole, a list by ending
        init_lora_weights=False,
        bias="none",
    )
    # Quantized layers are linear in all but type, and peft knows only torch's own class.
    types = {type(layer) for layer, _ in layers.values() if not isinstance(layer, nn.Linear)}
    if types:
        config._register_custom_module(dict.fromkeys(types, LoraLinear))
    # peft's own draws, which the caller overwrites, must not advance the global state
    silent = warnings.catch_warnings()
    with _INJECTING, torch.random.fork_rng(devices=[]), silent, _without_config(model), hidden("bitsandbytes"):
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # said of every quantized layer
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)  # pyright: ignore[reportUnknownMemberType]


@contextlib.contextmanager
def _without_config(model: nn.Module) -> Iterator[None]:
    """Hide the model's own `config` from peft, of which 0.16 took any for a table of transformers' settings."""
    hidden = {name: vars(model).pop(name) for name in ("config",) if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(hidden)


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that carry a LoRA, by name, in the model's order."""
    from peft.tuners.lora import LoraLayer

    modules = dict[str, nn.Module](model.named_modules())
    return {name: layer for name, layer in modules.items() if isinstance(layer, LoraLayer)}


def lora_linears(model: nn.Module) -> list[nn.Module]:
    """Those that wrap a linear layer and have nothing but the LoRA of the paper: one adapter, no DoRA, no bias on B."""
    from peft.tuners.lora import Linear

    return [layer for layer in lora_layers(model).values() if isinstance(layer, Linear) and _is_plain(layer)]


def _is_plain(layer: Any) -> bool:
    names = layer.active_adapters
    if len(names) != 1 or names[0] not in layer.lora_A:
        return False
    return names[0] not in layer.lora_variant and not layer.lora_bias[names[0]]


def carries_lora(layer: nn.Module) -> bool:
    """Whether it is a layer that peft has wrapped."""
    return hasattr(layer, "lora_A")


def is_factor(name: str) -> bool:
    """Whether a module or parameter of this name is one of a LoRA's factors."""
    return ".lora_" in name


def is_at_work(layer: Any) -> bool:
    """Whether a layer that carries a LoRA adds it: neither switched off nor merged into the base."""
    return not (layer.disable_adapters or layer.merged)


def factors_of(layer: Any) -> Factors:
    """Of a layer with one adapter."""
    name = layer.active_adapters[0]
    return Factors(
        layer.base_layer,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
        layer.lora_dropout[name],
        drops_on(layer),
    )


def drops_on(layer: nn.Module) -> nn.Module | None:
    """What `put_drops` has put on a layer."""
    return getattr(layer, _DROPS, None)


def leaves_out(layer: Any) -> bool:
    """Whether a layer with one adapter leaves out some of its inputs or ranks."""
    factors = factors_of(layer)
    return isinstance(factors.dropout, nn.Dropout) or factors.drops is not None


def put_drops(layer: nn.Module, drops: nn.Module) -> None:
    """Let a layer of peft's leave out some of its ranks; only the light forward does (`fused`), peft's own knows of none."""
    layer.add_module(_DROPS, drops)


def weight_names(path: str) -> tuple[str, str]:
    """Names of the parameters A and B of the layer at `path`."""
    return f"{path}.lora_A.{_ADAPTER}.weight", f"{path}.lora_B.{_ADAPTER}.weight"


def rank_and_alpha(layer: Any) -> tuple[int, float]:
    """As the LoRA was made."""
    return int(layer.r[_ADAPTER]), float(layer.lora_alpha[_ADAPTER])


def own_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer's class computes, whatever forward the layer has been given."""
    return type(layer).forward(layer, x)


def switch_layer(layer: Any, *, off: bool) -> None:
    """Have a layer of peft's leave its adapter out of the forward, or not; whether its weights are trained stays as it is."""
    layer._disable_adapters = off
