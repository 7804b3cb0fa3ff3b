"""bitsandbytes' optimizers: in 8 bits near to the plain ones, and in pages the same numbers (on a GPU: test_paged_cuda.py)."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.tests.core.optimizers.helpers import assert_close, expect, train

pytest.importorskip("bitsandbytes")
LARGE = ((64, 128), (128, 64))  # smaller ones it keeps in fp32
OPTIONS = OptimizerOptions(learning_rate=1e-3, weight_decay=0.1, beta2=0.99)


@pytest.mark.parametrize(("name", "plain"), [("lion8bit", "lion"), ("adamw8bit", "adamw")])
def test_in_8_bits_it_is_near_to_the_plain_one(name, plain):
    """Lion's signs differ where its momentum is near 0."""
    ours, _ = train(replace(OPTIONS, name=name), shapes=LARGE)
    exact, _ = train(replace(OPTIONS, name=plain), shapes=LARGE)
    start = expect(lambda weight, *_: weight, shapes=LARGE)
    for a, b, before in zip(ours, exact, start, strict=True):
        assert 0 < (a - b).detach().norm() < 0.35 * (b.detach() - before).norm()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("paged_lion", "lion"),
        ("paged_lion8bit", "lion8bit"),
        ("paged_adamw", "adamw"),
        ("paged_adamw8bit", "adamw8bit"),
    ],
)
def test_pages_change_no_number(name, plain):
    ours, _ = train(replace(OPTIONS, name=name), shapes=LARGE)
    others, _ = train(replace(OPTIONS, name=plain), shapes=LARGE)
    assert_close(ours, others)


@pytest.mark.parametrize("change", [{"beta1": 0.5}, {"beta2": 0.5}, {"weight_decay": 0.0}, {"learning_rate": 1e-2}])
@pytest.mark.parametrize("name", ["lion8bit", "paged_lion", "paged_lion8bit", "paged_adamw", "paged_adamw8bit"])
def test_each_option_reaches_it(name, change):
    ours, _ = train(replace(OPTIONS, name=name), shapes=LARGE, steps=5)
    others, _ = train(replace(OPTIONS, name=name, **change), shapes=LARGE, steps=5)
    assert not any(map(torch.equal, ours, others))
