"""Layers and miniature models in every format."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from wan_train.core.memory.precision import FormatOptions, resolve
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.core.wan.model import WanTransformer
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit

CPU = torch.device("cpu")
SIZE = DiTSize(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=16)
STORED = ("fp8", "int8", "nf4", "nf4 single", "int4_svd", "ara")  # products in the compute dtype
FORMATS = (*STORED, "fp8_compute")
LEAVES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
          "cross_attn.o", "ffn.0", "ffn.2")  # fmt: skip


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def factors(out_features, in_features, rank=4):
    return 0.02 * random(rank, in_features, seed=5), 0.02 * random(out_features, rank, seed=6)


def model_adapter(size=SIZE):
    """A random adapter for every block linear."""
    shapes = {"ffn.0": (size.ffn_dim, size.dim), "ffn.2": (size.dim, size.ffn_dim)}
    return {
        f"blocks.{index}.{leaf}": factors(*shapes.get(leaf, (size.dim, size.dim)))
        for index in range(size.num_layers)
        for leaf in LEAVES
    }


def resolve_format(name, adapter=None):
    precision, single = name.split()[0], name.endswith("single")
    options = FormatOptions(rank=4, double_quant=not single, adapter=(adapter or {}) if precision == "ara" else {})
    return resolve(precision, CPU, options=options)


def make_layer(name, weight, bias=None, dtype=torch.float32, scale=None):
    """`weight` [out, in] in the format `name`."""
    adapter = {"layer": factors(*weight.shape)}
    bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    layer = resolve_format(name, adapter).linear("layer", weight, scale, dtype=dtype, bias=bias)
    assert layer is not None
    return layer


def write_model(folder: Path, seed=0, size=SIZE) -> Path:
    path = folder / "mini.safetensors"
    save_file(wan_dit(size, seed=seed), path, metadata=dit_metadata(size))
    return path


def load(path: Path, name: str | None = None) -> WanTransformer:
    """The model of `path` in fp32, or in a format."""
    if name is None:
        return load_transformer(inspect(path), dtype=torch.float32, device="cpu")
    resolved = resolve_format(name, model_adapter())
    return load_transformer(inspect(path), dtype=resolved.dtype, device="cpu", linear=resolved.linear)


def dequantized(path: Path, quantized: WanTransformer) -> WanTransformer:
    """The plain model whose weights are those that `quantized` means."""
    model = load(path)
    for name, module in quantized.named_modules():
        if hasattr(module, "matrix"):
            model.get_submodule(name).weight.data = module.matrix()
    return model
