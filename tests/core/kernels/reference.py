"""What the kernels compute, in plain PyTorch of any precision: blocks are tested with it where no kernel can run."""

import torch
from torch.nn import functional
from wan_train.core.memory.precisions.fp8 import quantize_rows as plain_rows


def _norm(x, weight, bias, factors, add_one):
    per, stride, eps = factors
    width = x.shape[-1]
    x_RD = x.reshape(-1, width)
    if stride:
        rows = torch.arange(len(x_RD)) // per
        weight, bias = (each.as_strided((int(rows.max()) + 1, width), (stride, 1), each.storage_offset())[rows]
                        for each in (weight, bias))  # fmt: skip
    elif weight.dim() > 1:
        weight, bias = weight.reshape(width), bias.reshape(width)
    weight = weight + 1 if add_one else weight
    if bias is None:
        normed = functional.rms_norm(x_RD, (width,), eps=eps) * weight
    else:
        normed = functional.layer_norm(x_RD, (width,), eps=eps) * weight + bias
    return normed.view(x.shape).to(x.dtype)


def _gradient(function, x, grad):
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, grad)[0]


def quantize_rows(x, by=None):
    from wan_train.core.kernels.rows import Rows  # needs Triton

    x = x.reshape(-1, x.shape[-1])
    return Rows(*plain_rows(x if by is None else x.float() * by.reshape(1, -1)))


def _fill(rows, x):
    if rows is not None:
        for target, source in zip(rows.rows, quantize_rows(x, rows.by), strict=True):
            target.view(torch.uint8).copy_(source.view(torch.uint8))
    return x


def transposed(weight, *, out):
    out.view(torch.uint8).copy_(weight.view(torch.uint8).t())
    return out.t()


def norm(x, weight, bias, factors, *, add_one, quantize):
    y = _norm(x, weight, bias, factors, add_one).clone()  # of its own memory, as a kernel's result is
    return y, quantize_rows(y) if quantize else None


def norm_gradient(x, weight, bias, grad, beside, factors, *, add_one, again=False, rows=None):
    found = _gradient(lambda x: _norm(x, weight, bias, factors, add_one), x, grad)
    found = _fill(rows, found if beside is None else found + beside)
    return found, _norm(x, weight, bias, factors, add_one) if again else None


def _rms_rope(x, weight, rope, eps):
    x = functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps).unflatten(2, (-1, 2 * rope.shape[2]))
    cos, sin = rope.to(x.dtype).unflatten(1, (-1, x.shape[1])).unsqueeze(3).unbind(0)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def rms_rope(x, weight, rope, eps):
    return _rms_rope(x, weight, rope, eps)


def rms_rope_gradient(x, weight, rope, grad, eps, rows=None):
    return _fill(rows, _gradient(lambda x: _rms_rope(x, weight, rope, eps), x, grad))


def gelu(x, *, quantize):
    y = functional.gelu(x, approximate="tanh")
    return y, quantize_rows(y) if quantize else None


def gelu_gradient(x, grad, *, again=False, onto=False):
    of_x = _gradient(lambda x: functional.gelu(x, approximate="tanh"), x, grad)
    return grad.copy_(of_x) if onto else of_x, functional.gelu(x, approximate="tanh") if again else None


def gated(x, y, gate, per, stride, out=None, rows=None):
    width = y.shape[-1]
    numbers = torch.arange(y.numel() // width) // per
    count = int(numbers.max()) + 1
    factors = gate.as_strided((count, width), (stride, 1), gate.storage_offset())[numbers].view(y.shape)
    found = _fill(rows, (y * factors if x is None else x + y * factors).to(y.dtype))
    return found if out is None else out.copy_(found)


def dequantize_rows(weight, scale, *, out):
    return out.copy_((weight.to(out.dtype) * scale).to(out.dtype))


def put_in_place(patch):
    """Of the kernels; `patch` is pytest's monkeypatch."""
    from wan_train.core.kernels import elementwise, linears, norms, ops, rotary, rows

    patch.setattr(ops, "INTERPRETED", True)
    patch.setattr(ops, "DTYPES", (*ops.DTYPES, torch.float64))
    for function in (dequantize_rows, quantize_rows, transposed):
        patch.setattr(linears, function.__name__, function)
    patch.setattr(rows, "quantize_rows", quantize_rows)
    for module, functions in ((norms, (norm, norm_gradient)), (rotary, (rms_rope, rms_rope_gradient)),
                              (elementwise, (gelu, gelu_gradient, gated))):  # fmt: skip
        for function in functions:
            patch.setattr(module, function.__name__, function)
