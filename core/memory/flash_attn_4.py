"""FlashAttention 4 (package flash-attn-4) as an operator: the compiler does not look inside, checkpointing can keep its result.

PyTorch 2.11 can put it in place of its own backend "flash" (torch.nn.attention.activate_flash_attention_impl), but only a
version of 2026-03 or before, which gave two results.
Shapes: B batch, L query tokens, S key tokens, N heads, K head dim.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .deterministic import is_deterministic

MODULE = "flash_attn.cute.interface"


@torch.library.custom_op("wan_train::flash_attn_4", mutates_args=(), device_types="cuda")
def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Out [B, L, N, K], and the logsumexp of each row of scores, [B, N, L] float32."""
    flash = importlib.import_module(MODULE)
    out, logsumexp, *_ = flash._flash_attn_fwd(q.contiguous(), k.contiguous(), v.contiguous(), return_lse=True)
    return out, logsumexp


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    del k, v
    batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("wan_train::flash_attn_4_backward", mutates_args=(), device_types="cuda")
def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from `grad` of the output."""
    flash = importlib.import_module(MODULE)
    q, k, v, grad = q.contiguous(), k.contiguous(), v.contiguous(), grad.contiguous()
    dq, dk, dv, *_ = flash._flash_attn_bwd(q, k, v, out, grad, logsumexp, **order_of(flash._flash_attn_bwd))
    return dq, dk, dv


def order_of(flash_backward: Callable[..., Any]) -> dict[str, bool]:
    """What the package's backward is told besides, so that it gives the same bits each time where that is wanted.

    ConfigError where it can't be told.
    """
    if not is_deterministic():
        return {}
    if "deterministic" not in inspect.signature(flash_backward).parameters:
        raise ConfigError("this version of flash-attn-4 knows no deterministic backward: install a newer one")
    return {"deterministic": True}


@backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del grad, out, logsumexp
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return backward(grad, *ctx.saved_tensors)


forward.register_autograd(_gradients, setup_context=_keep)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without a mask. q [B, L, N, K], k and v [B, S, N, K] bf16 or fp16 -> [B, L, N, K]."""
    return forward(q, k, v)[0]
