"""LoRA on a Wan transformer, through peft: put in, initialised, read out, loaded back.

peft is imported where it is used: importing it takes seconds, and most users of this package do not need it.
"""

import contextlib
import hashlib
import math
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import ConfigError, ModelFileError
from ..packages import unusable
from ..settings.adapter import AdapterOptions
from .keys import official_key, sort_key

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

LINEARS = {
    "self_attn": ("q", "k", "v", "o"),
    "cross_attn": ("q", "k", "v", "o", "k_img", "v_img"),  # the last two only in Wan 2.1 I2V
    "ffn": ("0", "2"),
}
_ADAPTER = "default"
_NOT_FOR_ADAPTERS = ("bitsandbytes", "scipy", "sklearn", "torchaudio", "torchvision")


def import_adapters() -> None:
    """Import peft now rather than at the first use, in a process of ours: it takes seconds.

    Half of them go to packages that peft, and transformers for it, import where they find them, for what is not used here:
    they do not find them. One that does not fit the PyTorch beside it, as torchvision in many a ComfyUI, then does no harm.
    ConfigError with the command to run if peft is not there, or can't be imported.
    """
    hidden = [name for name in _NOT_FOR_ADAPTERS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: such a module is not found
    try:
        import peft  # noqa: F401
    except Exception as error:  # a package that does not fit its neighbours raises anything
        raise unusable("peft", error) from error
    finally:
        for name in hidden:
            del sys.modules[name]


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
        with contextlib.suppress(Exception):  # of whatever is installed: it is tried again, and told, by `finish`
            import_adapters()


_IMPORTING = _Importing()


def begin_importing_adapters() -> None:
    """As `import_adapters`, in a thread of its own, while a model is read.

    Until `finish_importing_adapters` nobody may import the compiler, which peft imports too, or a package hidden from it.
    """
    _IMPORTING.begin()


def finish_importing_adapters() -> None:
    """Wait until peft is there. ImportError if it cannot be imported."""
    _IMPORTING.finish()


def add_adapter(model: nn.Module, options: AdapterOptions, *, seed: int) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a float32 LoRA on its linear layers, in place.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) (kaiming_uniform with a = sqrt(5), as in loralib) by a CPU generator
    seeded by `seed` and the module's name alone; B is zero, so the model's output is unchanged. Returns the trainable
    parameters, block by block. ConfigError if the model has no matching layer or carries a LoRA already.
    """
    import peft
    from peft.tuners.lora import Linear as LoraLinear

    if adapter_modules(model):
        raise ConfigError("The model already carries a LoRA: load the model anew before adding another.")
    layers = _target_layers(model, options)
    if not layers:
        raise ConfigError(
            f"The model has no linear layers named blocks.N.{{{', '.join(options.targets)}}}: "
            "load a Wan transformer, or choose other targets."
        )
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=options.dropout,
        target_modules="|".join(re.escape(name) for name in layers),  # a string is matched as a whole, a list by ending
        init_lora_weights=False,
        bias="none",
    )
    # Quantized layers are linear in all but type, and peft knows only torch's own class.
    others = {type(layer) for layer in layers.values() if not isinstance(layer, nn.Linear)}
    if others:
        config._register_custom_module(dict.fromkeys(others, LoraLinear))
    model.requires_grad_(False)
    # peft's own draws, overwritten below, must not advance the global state
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # said of every quantized layer
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    adapted = adapter_modules(model)
    for path, layer in adapted.items():
        _initialise(layer, path, seed)
    return [
        (f"{path}.{name}.{_ADAPTER}.weight", _weight(getattr(layer, name)))
        for path, layer in adapted.items()
        for name in ("lora_A", "lora_B")
    ]


def adapter_modules(model: nn.Module) -> "dict[str, LoraLayer]":
    """The layers that carry a LoRA, by official path, block by block; {} if there are none."""
    from peft.tuners.lora import LoraLayer

    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: found[name] for name in sorted(found, key=sort_key)}


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA as it goes into a file: `diffusion_model.<path>.lora_A.weight`, `.lora_B.weight`, `.alpha`.

    Float32 copies on the CPU. ConfigError if the model carries no LoRA.
    """
    layers = _require_adapter(model)
    state: dict[str, torch.Tensor] = {}
    for path, layer in layers.items():
        for key, weight in _keyed_weights(path, layer):
            state[key] = weight.detach().to("cpu", torch.float32, copy=True).contiguous()
        state[official_key(path, "alpha")] = torch.tensor(float(layer.lora_alpha[_ADAPTER]))
    return state


def load_adapter(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load what `adapter_state` returned into the LoRA that `model` carries, in place and exactly.

    Optimizers keep pointing at the same parameters. A missing `.alpha` counts as the rank, as in the host.
    ModelFileError if modules, ranks, widths or alphas differ; the model is then unchanged.
    """
    with torch.no_grad():
        for weight, tensor in _matched(model, tensors):
            weight.copy_(tensor)


def check_adapter(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """ModelFileError for what `load_adapter` would refuse, and for weights that are no finite float32 numbers."""
    _matched(model, tensors)
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ModelFileError(
                f"The LoRA's '{key}' holds something else than finite float32 numbers: export it again."
            )


def _matched(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Each weight of the model's LoRA with its tensor."""
    layers = _require_adapter(model)
    pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
    expected: set[str] = set()
    for path, layer in layers.items():
        for key, weight in _keyed_weights(path, layer):
            expected.add(key)
            if key not in tensors:
                raise ModelFileError(f"The LoRA lacks '{key}', which this model trains: choose the same targets.")
            if tensors[key].shape != weight.shape:
                raise ModelFileError(
                    f"The LoRA's '{key}' has the shape {list(tensors[key].shape)}, the model's adapter "
                    f"{list(weight.shape)}: set the same rank and base model."
                )
            pairs.append((weight, tensors[key]))
        alpha_key = official_key(path, "alpha")
        expected.add(alpha_key)
        rank, alpha = layer.r[_ADAPTER], float(layer.lora_alpha[_ADAPTER])
        stored = float(tensors[alpha_key]) if alpha_key in tensors else float(rank)
        if not math.isclose(stored, alpha, rel_tol=1e-6):
            raise ModelFileError(
                f"The LoRA was saved with alpha {stored:g} at {path}, the model's adapter has {alpha:g}: "
                f"set alpha to {stored:g}."
            )
    unknown = sorted(set(tensors) - expected)
    if unknown:
        raise ModelFileError(
            f"The LoRA holds '{unknown[0]}', which this model does not train: choose the same targets."
        )
    return pairs


def _target_layers(model: nn.Module, options: AdapterOptions) -> dict[str, nn.Module]:
    choices = "|".join(rf"{target}\.(?:{'|'.join(LINEARS[target])})" for target in LINEARS if target in options.targets)
    pattern = re.compile(rf"blocks\.\d+\.(?:{choices})")
    found = {name: layer for name, layer in model.named_modules() if pattern.fullmatch(name)}
    for name, layer in found.items():
        if not (isinstance(getattr(layer, "in_features", None), int) and hasattr(layer, "out_features")):
            raise ConfigError(f"{name} is a {type(layer).__name__}, which is no linear layer and cannot carry a LoRA.")
    return {name: found[name] for name in sorted(found, key=sort_key)}


def _initialise(layer: "LoraLayer", path: str, seed: int) -> None:
    down, up = _weight(layer.lora_A), _weight(layer.lora_B)
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))  # mt19937 takes 32 bits
    bound = 1.0 / math.sqrt(down.shape[1])
    # drawn on the CPU, because every device has a stream of its own
    values = torch.empty(down.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    down.data = values.to(down.device)
    up.data = torch.zeros(up.shape, dtype=torch.float32, device=up.device)


def _keyed_weights(path: str, layer: "LoraLayer") -> tuple[tuple[str, nn.Parameter], ...]:
    return (official_key(path, "down"), _weight(layer.lora_A)), (official_key(path, "up"), _weight(layer.lora_B))


def _require_adapter(model: nn.Module) -> "dict[str, LoraLayer]":
    layers = adapter_modules(model)
    if not layers:
        raise ConfigError("The model carries no LoRA: add one before loading or saving it.")
    return layers


def _weight(linears: nn.ModuleDict) -> nn.Parameter:
    weight = linears[_ADAPTER].weight
    assert isinstance(weight, nn.Parameter)
    return weight
