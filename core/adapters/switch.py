"""A model in training without its adapter, for as long as somebody wants to know what the base would say."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .peft_hooks import switch_layer
from .setup import adapter_modules


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it, forwards without a gradient are the base's, to the bit; weights and gradients stay as they are.

    peft's own switch would end the training of the weights, too.
    """
    layers = list(adapter_modules(model).values())
    for layer in layers:
        switch_layer(layer, off=True)
    try:
        yield
    finally:
        for layer in layers:
            switch_layer(layer, off=False)
