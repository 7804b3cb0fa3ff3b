"""Chooses the fastest attention whose results and gradients are right on this machine, by trying those that are installed.

Shapes: B batch, L query tokens, S key tokens, N heads, K head dim.
"""

import importlib
import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..errors import ConfigError
from ..wan.layers import Attend
from .deterministic import is_deterministic

# Largest relative error of out, dq, dk, dv. Right backends show about one rounding of the dtype: 2e-3 in bf16 on an H100.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
TIMED_ROUNDS, RUNS = 2, 4  # runs of each round
TIMED_TOKENS = {"cuda": 8192, "cpu": 256}  # at most; beyond, the time per token pair changes little
# Where the same bits are asked for: tokens, and how often it is tried whether they are the same.
REPEATED_TOKENS, REPEATS = {"cuda": 4096, "cpu": 300}, 4
ANY_ORDER = ("cudnn",)  # kinds whose backward can't be had with the same bits each time


@dataclass(frozen=True)
class Candidate:
    """A way to compute attention. `load` raises an exception where it is not installed."""

    name: str
    load: Callable[[], Attend]


@dataclass(frozen=True)
class AttentionChoice:
    """The attention chosen; the time of one forward and backward, and the reason of each refusal, by candidate."""

    name: str
    attend: Attend
    milliseconds: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class AttentionShape:
    """What is to be attended to: `tokens` queries, keys and values of one sample."""

    tokens: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


def candidates(device: torch.device, *, same_bits: bool = False) -> tuple[Candidate, ...]:
    """What may be tried on `device`; only on CUDA is there a choice. "math" comes last: it needs [N, L, S] scores.

    `same_bits`: those alone that can be had so that they give the same bits each time.
    """
    found = _candidates(device)
    return tuple(one for one in found if one.name not in ANY_ORDER) if same_bits else found


def _candidates(device: torch.device) -> tuple[Candidate, ...]:
    if device.type != "cuda":
        return (Candidate("sdpa", lambda: sdpa_attention(None)),)
    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    built_in = [Candidate(name, lambda backend=backend: sdpa_attention(backend)) for name, backend in backends.items()]
    packages = (
        Candidate("flash_attn_4", _load_flash_attn_4),
        Candidate("flash_attn_3", _load_flash_attn_3),
        Candidate("flash_attn_2", _load_flash_attn_2),
    )
    return (*packages, *built_in)


def choose_attention(
    name: str, shape: AttentionShape, *, compiled: bool = False, same_bits: bool = False
) -> AttentionChoice:
    """The candidate `name`, or with "auto" the fastest of those that are right.

    `compiled`: it must also be traceable by torch.compile without a break. `same_bits`: see `candidates`; within
    `deterministic.same_bits` it is tried whether they are the same.
    Raises ConfigError if `name` is not known or not usable here; the reason is in the message.
    """
    known = candidates(shape.device, same_bits=same_bits)
    if name == "auto":
        fast = [candidate for candidate in known if candidate.name != "math"]
        try:
            return fastest(fast, shape, compiled=compiled)
        except ConfigError:
            if len(fast) == len(known):
                raise
            return fastest(known, shape, compiled=compiled)
    named = [candidate for candidate in known if candidate.name == name]
    if not named:
        names = ", ".join(candidate.name for candidate in known)
        raise ConfigError(f"There is no attention '{name}' on the device {shape.device}: choose auto, {names}.")
    return fastest(named, shape, compiled=compiled)


def load_attention(name: str, device: torch.device) -> Attend:
    """The candidate `name` as it is, not tried again; "": PyTorch's own. ConfigError or ImportError if it is not there."""
    if not name:
        return sdpa_attention(None)
    for candidate in candidates(device):
        if candidate.name == name:
            return candidate.load()
    raise ConfigError(f"There is no attention '{name}' on the device {device}.")


def fastest(tried: Sequence[Candidate], shape: AttentionShape, *, compiled: bool = False) -> AttentionChoice:
    """Check and time each candidate. Raises ConfigError, with each one's reason, if none is usable."""
    usable: dict[str, Attend] = {}
    milliseconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for candidate in tried:
        try:
            attend, milliseconds[candidate.name] = _try(candidate, shape, compiled=compiled)
            usable[candidate.name] = attend
        except _RefusedError as error:
            refused[candidate.name] = str(error)
    if shape.device.type == "cuda":
        torch.cuda.empty_cache()
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ConfigError(f"None of the kinds of attention can be used on the device {shape.device}. {reasons}")
    best = min(usable, key=milliseconds.__getitem__)
    return AttentionChoice(best, usable[best], milliseconds, refused)


def largest_error(attend: Attend, shape: AttentionShape, *, num_keys: int) -> float:
    """Of out, dq, dk and dv, relative to attention in float64, at the size of `shape`; NaN if any is NaN.

    The gradient dO of the output comes in both memory layouts, [B, N, L, K] first, each twice: torch 2.11's cuDNN backend
    computes with the layout of the first dO of a shape, and returns noise for the other.
    """
    generator = torch.Generator().manual_seed(0)
    queries = (1, shape.tokens, shape.num_heads, shape.head_dim)
    keys = (1, num_keys, shape.num_heads, shape.head_dim)
    q, k, v, grad = (torch.randn(size, generator=generator) for size in (queries, keys, keys, queries))
    rounded = [tensor.to(shape.dtype) for tensor in (q, k, v, grad)]
    reference = _with_gradients(exact_attention, *(tensor.double() for tensor in rounded))
    q, k, v, grad = (tensor.to(shape.device) for tensor in rounded)
    errors = []
    for by_head in (True, False, True, False):
        laid_out = grad.transpose(1, 2).contiguous().transpose(1, 2) if by_head else grad
        results = _with_gradients(attend, q, k, v, laid_out)
        for result, exact in zip(results, reference, strict=True):
            errors.append((result.cpu().double() - exact).norm() / exact.norm())
    return torch.stack(errors).max().item()  # unlike Python's, this maximum keeps NaN


def time_attention(attend: Attend, shape: AttentionShape) -> float:
    """Milliseconds of a forward and backward of self-attention, the best of a few rounds after a first.

    The runs of a round follow each other without waiting, as blocks do: how long the launch of one takes is hidden by the
    one before, unless it takes longer than the work itself.
    """
    size = (1, shape.tokens, shape.num_heads, shape.head_dim)
    q, k, v, grad = (torch.randn(size, dtype=shape.dtype, device=shape.device) for _ in range(4))
    seconds = []
    for _ in range(1 + TIMED_ROUNDS):
        _synchronize(shape.device)
        start = time.perf_counter()
        for _ in range(RUNS):
            _with_gradients(attend, q, k, v, grad)
        _synchronize(shape.device)
        seconds.append((time.perf_counter() - start) / RUNS)
    return 1000 * min(seconds[1:])


def sdpa_attention(backend: SDPBackend | None) -> Attend:
    """PyTorch's attention by one backend, or by the one that PyTorch chooses; dO always reaches it in one layout."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_BNLK, k_BNSK, v_BNSK = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if backend is None:
            out = scaled_dot_product_attention(q_BNLK, k_BNSK, v_BNSK)
        else:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(q_BNLK, k_BNSK, v_BNSK)
        return _ContiguousGradient.apply(out.transpose(1, 2))  # type: ignore[return-value]

    return attend


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula itself, for small sizes: softmax(q k^T / sqrt(K)) v."""
    weights = torch.einsum("blnk,bsnk->bnls", q, k).mul(q.shape[-1] ** -0.5).softmax(dim=-1)
    return torch.einsum("bnls,bsnk->blnk", weights, v)


class _RefusedError(Exception):
    """Why a candidate is not used."""


class _ContiguousGradient(torch.autograd.Function):
    """The identity; its gradient is passed on contiguous: see `largest_error` for the reason."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.contiguous()


def _try(candidate: Candidate, shape: AttentionShape, *, compiled: bool) -> tuple[Attend, float]:
    """The candidate's function and its milliseconds. _RefusedError if it is missing, not able, wrong, or not traceable."""
    timed = replace(shape, tokens=min(shape.tokens, TIMED_TOKENS.get(shape.device.type, 256)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            attend = candidate.load()
            _check(attend, shape, compiled=compiled)
            return attend, time_attention(attend, timed)
        except Exception as error:  # of whatever package is installed: flash-attn-4 asserts what a card must be able to
            # PyTorch says in warnings why a backend does not take the inputs, and in the error that none is left.
            said = [str(warning.message).partition(" (Triggered")[0] for warning in caught]
            reasons = dict.fromkeys([str(error).strip().partition("\n")[0], *said])
            raise _RefusedError(" ".join(reasons)) from error


def _check(attend: Attend, shape: AttentionShape, *, compiled: bool) -> None:
    """_RefusedError unless self- and cross-attention of a small size, not a multiple of any tile, are right."""
    small = replace(shape, tokens=300, num_heads=min(shape.num_heads, 4))
    for num_keys in (small.tokens, 77):
        error = largest_error(attend, small, num_keys=num_keys)
        if not error <= TOLERANCES[shape.dtype]:
            raise _RefusedError(
                f"its result or gradients are wrong here: relative error {error:.2g} with {num_keys} keys, where "
                f"{TOLERANCES[shape.dtype]:g} is the most that rounding to {shape.dtype} explains"
            )
    if is_deterministic():
        _check_bits(attend, replace(shape, tokens=min(shape.tokens, REPEATED_TOKENS.get(shape.device.type, 300))))
    if compiled:
        _trace(attend, shape)


def _check_bits(attend: Attend, shape: AttentionShape) -> None:
    """_RefusedError unless the result and the gradients are the same to the bit each time."""
    size = (1, shape.tokens, shape.num_heads, shape.head_dim)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(size, generator=generator).to(shape.device, shape.dtype) for _ in range(4))
    first = _with_gradients(attend, q, k, v, grad)
    for _ in range(REPEATS):
        again = _with_gradients(attend, q, k, v, grad)
        if not all(torch.equal(one, other) for one, other in zip(first, again, strict=True)):
            raise _RefusedError("its gradients are not the same to the bit each time, and deterministic is on")


def _trace(attend: Attend, shape: AttentionShape) -> None:
    """Raises what the compiler raises."""
    traced = torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager")
    size = (1, 64, min(shape.num_heads, 4), shape.head_dim)
    q = torch.zeros(size, dtype=shape.dtype, device=shape.device)
    _with_gradients(traced, q, q, q, q)


def _with_gradients(attend: Attend, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """[out, dq, dk, dv] for the gradient `grad` of the output."""
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    with torch.enable_grad():
        out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _load_flash_attn_2() -> Attend:
    return _package_attention("flash_attn")


def _load_flash_attn_3() -> Attend:
    return _package_attention("flash_attn_interface")  # the name of the module that hopper/setup.py installs


def _load_flash_attn_4() -> Attend:
    from . import flash_attn_4

    importlib.import_module(flash_attn_4.MODULE)
    return flash_attn_4.attend


def _package_attention(module_name: str) -> Attend:
    module = importlib.import_module(module_name)
    if not hasattr(module, "flash_attn_func"):  # flash-attn-4 shares the folder "flash_attn" with version 2
        raise ImportError(f"{module_name} has no flash_attn_func")
    function = module.flash_attn_func
    can_repeat = "deterministic" in inspect.signature(function).parameters

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if is_deterministic():
            if not can_repeat:
                raise ConfigError(f"this version of {module_name} knows no deterministic backward: install a newer one")
            out = function(q, k, v, deterministic=True)
        else:
            out = function(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # FlashAttention 3 of before 2025-10 returns the logsumexp too

    return attend
