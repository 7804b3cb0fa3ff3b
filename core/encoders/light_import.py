"""diffusers and transformers without what they import beside what is used here, which is most of their seconds.

diffusers, of which one class is used, imports peft, bitsandbytes, transformers, scipy and torchvision where it finds them;
transformers imports scipy, scikit-learn and torchaudio. The compiler, which both of them import, stays the largest part.
"""

import importlib
import sys
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from typing import Any

from ..hidden import hidden

_NOT_FOR_A_VAE = (
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "scipy",
    "sklearn",
    "torchvision",
    "torchaudio",
)
_NOT_FOR_AN_ENCODER = ("scipy", "sklearn", "torchaudio")


@lru_cache
def wan_vae_class() -> Any:
    """diffusers' AutoencoderKLWan. Who imports diffusers afterwards gets it whole. Raises what its own import raises."""
    if "diffusers" not in sys.modules:
        with suppress(Exception):  # of a release that does not do without them: it is imported as usual then
            return _light()
    return _whole()


def for_encoders() -> AbstractContextManager[None]:
    """Around an import of text and vision models from transformers."""
    return hidden(*_NOT_FOR_AN_ENCODER)


def _light() -> Any:
    try:
        with hidden(*_NOT_FOR_A_VAE):
            return _whole()
    finally:
        for name in [name for name in list(sys.modules) if name.partition(".")[0] == "diffusers"]:
            del sys.modules[name]


def _whole() -> Any:
    return importlib.import_module("diffusers").AutoencoderKLWan
