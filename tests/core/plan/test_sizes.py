"""Bytes from the configuration against those of real blocks."""

import pytest
import torch
from torch import nn
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.memory.master import streamed_bytes
from wan_train.core.memory.precision import resolve
from wan_train.core.plan.sizes import Trained, adapter_params, block_bytes, num_params, rest_bytes
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.memory.helpers import CLIP_CONFIG, CPU

CONFIG = WanConfig(dim=192, ffn_dim=320, num_heads=3, num_layers=2, text_dim=16)
ODD_CONFIG = WanConfig(dim=72, ffn_dim=200, num_heads=3, num_layers=1, text_dim=16)  # not whole groups and blocks
FLF_CONFIG = WanConfig(
    variant="flf2v", in_dim=36, image_dim=24, image_positions=514, dim=32, ffn_dim=64, num_heads=2, num_layers=1,
    text_dim=16,
)  # fmt: skip


def held(config, precision, dtype):
    """The model as the loader leaves it: block linears in a format or in `dtype`, the rest in fp32."""
    model = WanTransformer(config).requires_grad_(False)
    make = None if precision in ("fp32", "bf16") else resolve(precision, CPU).linear
    for name, layer in list(model.blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
            quantized = make and make(name, layer.weight.data, None, dtype=dtype, bias=layer.bias)
            if quantized:
                model.blocks.set_submodule(name, quantized)
    return model


@pytest.mark.parametrize("config", [CONFIG, ODD_CONFIG, CLIP_CONFIG], ids=["t2v", "odd", "clip"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "fp8_compute", "int8", "nf4", "int4_svd"])
def test_block_bytes_are_those_of_the_streamed_block(config, precision):
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    block = held(config, precision, dtype).blocks[0]
    assert block_bytes(config, precision, dtype.itemsize) == streamed_bytes(block)


@pytest.mark.parametrize("config", [CONFIG, CLIP_CONFIG, FLF_CONFIG], ids=["t2v", "clip", "flf2v"])
def test_all_other_weights(config):
    with torch.device("meta"):
        model = WanTransformer(config)
    assert num_params(config) == sum(p.numel() for p in model.parameters())
    assert rest_bytes(config) == sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("blocks."))


@pytest.mark.parametrize("targets", [("self_attn",), ("cross_attn", "ffn"), ("self_attn", "cross_attn", "ffn")])
def test_adapter_params(targets):
    model = WanTransformer(CLIP_CONFIG)
    parameters = add_adapter(model, AdapterOptions(rank=3, alpha=3.0, targets=targets), seed=0)
    assert adapter_params(CLIP_CONFIG, Trained(rank=3, targets=targets)) == sum(p.numel() for _, p in parameters)
