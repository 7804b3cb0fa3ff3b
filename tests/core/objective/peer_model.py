"""Our side of peer_case.py: its model with its LoRA, its batch, and what was found compared with what a peer's code gave."""

from functools import partial

import pytest
import torch
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.adapters.switch import without_adapter
from wan_train.core.objective.forwards import Forwards, noisy_batch
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.objective import peer_case as case


def make_model(alpha=case.RANK):
    made = WanTransformer(WanConfig(**case.SIZES))
    made.load_state_dict(case.weights_like(made.state_dict()))
    add_adapter(
        made.requires_grad_(False),
        AdapterOptions(rank=case.RANK, alpha=alpha, targets=("self_attn", "cross_attn")),
        seed=0,
    )
    with torch.no_grad():
        for name, (a, b) in case.lora().items():
            layer = made.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    return made.train()


def noisy(masks=None):
    latents, noise, sigmas, context = case.batch()
    return noisy_batch(latents, noise, sigmas, context, {}, masks=masks)


def forwards_of(model):
    without = partial(without_adapter, model)
    return Forwards(model, without_adapter=without, load_empty_context=lambda: case.text(seed=case.EMPTY)[0])


def check(theirs, model, loss, further=None, *, within=2e-3):
    layers = {f"{name}.{part}": (name, part) for name in case.lora() for part in "AB"}
    parameters = {
        key: getattr(model.get_submodule(name), f"lora_{part}")["default"].weight
        for key, (name, part) in layers.items()
    } | (further or {})
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert loss.item() == pytest.approx(theirs["loss"], rel=1e-5)
    assert found.keys() == theirs["gradients"].keys()
    for name, numbers in case.told(found).items():
        of_theirs = theirs["gradients"][name]
        assert numbers == pytest.approx(of_theirs, rel=within, abs=within * of_theirs[0]), name
