"""Blocks by kernels on the meta device, at a size that no test has memory for: shapes, types and layouts, and no numbers.

What waits for a number, as `.item()` and a tensor as a condition do, raises there: on a GPU it would wait in every step.
"""

from typing import NamedTuple

import torch
from wan_train.core.adapters.setup import add_adapter, use_light_forward
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer

META = torch.device("meta")
CONFIG = WanConfig(num_layers=1)  # a block of 14B


class Given(NamedTuple):
    """A tensor that a kernel was given, which goes as it would."""

    kernel: str
    device: torch.device
    shape: torch.Size
    stride: tuple[int, ...]
    is_contiguous: bool


class Attention(torch.autograd.Function):
    """What FlashAttention keeps and makes; its gradients come with the heads before the tokens, as cuDNN's may."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, _grad):
        by_head = (each.new_empty(each.transpose(1, 2).shape) for each in ctx.saved_tensors[:3])
        return tuple(each.transpose(1, 2) for each in by_head)


def make_model(**options):
    """One block in bf16 with an adapter."""
    with META:
        model = WanTransformer(CONFIG)
    model.blocks.to(torch.bfloat16)
    add_adapter(model, AdapterOptions(**{"rank": 16, "alpha": 16.0, "tlora_orthogonal": False, **options}), seed=0)
    use_light_forward(model)
    return model.train()


def tell_noise(model, batch):
    """What a forward of the whole model tells a T-LoRA."""
    if model.rank_gate is not None:
        model.rank_gate(torch.empty(batch, 1, device=META))


def use_attention(model):
    """Once the model runs by kernels."""
    for module in model.blocks.modules():
        if hasattr(module, "attend"):
            module.attend = Attention.apply


def inputs(*, batch, tokens, timesteps=1):
    """x, and what the block is given besides."""
    x = torch.empty(batch, tokens, CONFIG.dim, dtype=torch.bfloat16, device=META, requires_grad=True)
    rope = torch.empty(2, tokens, CONFIG.dim // CONFIG.num_heads // 2, device=META)
    context = torch.empty(batch, CONFIG.text_len, CONFIG.dim, dtype=torch.bfloat16, device=META)
    return x, [torch.empty(batch, timesteps, 6, CONFIG.dim, device=META), rope, context]


def drop_as_a_gpu_does(patch):
    """PyTorch's dropout keeps a mask of bytes on a GPU alone. `patch` is pytest's monkeypatch."""

    def dropout(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, train=True)[0] if training and p > 0 else x

    patch.setattr(torch.nn.functional, "dropout", dropout)


def take_launches(patch):
    """Two lists, which get the grids, and the tensors, of kernels that are not launched. `patch` is pytest's monkeypatch."""
    from wan_train.core.kernels import elementwise, norms, ops, rotary, rows
    from wan_train.core.memory import remaker

    grids, given = [], []

    def launch(kernel, grid, args, *_):
        grids.append((kernel.__name__, grid))
        given.extend(
            Given(kernel.__name__, each.device, each.shape, each.stride(), each.is_contiguous())
            for each in filter(torch.is_tensor, args)
        )

    for module in (elementwise, norms, rotary, rows):
        patch.setattr(module, "launch", launch)
    patch.setattr(ops, "INTERPRETED", True)
    # Memory without numbers has no address.
    patch.setattr(remaker, "_place", lambda tensor: (tensor.untyped_storage()._cdata, tensor.dtype))
    return grids, given
