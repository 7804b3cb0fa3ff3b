"""Packages that trackers need, which the pack does not bring."""

import importlib
import importlib.util
from types import ModuleType

from ..errors import ConfigError
from ..packages import advice

_FOR = {"tensorboard": "TensorBoard files", "wandb": "Weights & Biases", "huggingface_hub": "Hugging Face"}


def imported(name: str) -> ModuleType:
    """The package; ConfigError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        why = f" ({error})" if importlib.util.find_spec(name) else ""
        raise ConfigError(
            f"{_FOR[name]} need the package {name}, which can't be imported{why}: {advice(name)}"
        ) from error
