"""fp8 and int8: the quantizers' errors, and the product in fp8."""

import pytest
import torch
from torch.nn import functional
from wan_train.core.memory.precisions import fp8_compute
from wan_train.core.memory.precisions.fp8 import Fp8Linear, quantize_rows
from wan_train.core.memory.precisions.fp8_compute import Fp8ComputeLinear, find_kernel, multiply
from wan_train.core.memory.precisions.int8 import quantize_int8
from wan_train.tests.core.memory.precisions.helpers import CPU, make_layer, random

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
needs_product = pytest.mark.skipif(find_kernel(CPU) is None, reason="this PyTorch has no product in fp8 on the CPU")


def spread(rows, columns):
    """Rows of very different sizes, one of zeros, one with a number that stands out."""
    values = random(rows, columns) * torch.logspace(-6, 3, rows)[:, None]
    values[1] = 0
    values[2, 3] = 100 * values[2].abs().max()
    return values


@pytest.mark.parametrize("shape", [(8, 16), (5, 33), (17, 1)])
def test_fp8_rows_are_as_near_as_e4m3_allows(shape):
    values = spread(*shape) if shape[1] > 3 else random(*shape)
    stored, scale = quantize_rows(values)
    assert (stored.dtype, scale.dtype, tuple(scale.shape)) == (E4M3, torch.float32, (shape[0], 1))
    error = (stored.float() * scale - values).abs()
    assert (error <= torch.maximum(values.abs() / 16, scale / 1024) * 1.0001).all()
    assert torch.isfinite(stored.float()).all()
    assert (error > 0).any()


def test_int8_rows_are_within_half_a_step():
    values = spread(8, 33)
    stored, scale = quantize_int8(values)
    assert stored.dtype == torch.int8
    error = (stored.float() * scale - values).abs()
    assert (error <= scale / 2 * 1.0001).all()
    assert (scale.squeeze(1) * 127 >= values.abs().amax(1) * 0.9999).all()


@pytest.mark.parametrize("stored_dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scale", [None, torch.full((1, 1), 0.37), torch.linspace(0.1, 2, 48)[:, None]])
def test_what_a_file_holds_in_fp8_is_kept_as_it_is(stored_dtype, scale):
    weight = random(48, 32).to(stored_dtype)
    layer = make_layer("fp8", weight, random(48), scale=scale)
    assert isinstance(layer, Fp8Linear)
    assert layer.weight.data_ptr() == weight.data_ptr()
    meant = weight.float() * (1 if scale is None else scale)
    assert torch.equal(layer.matrix(), meant)
    assert torch.equal(layer.matrix(torch.bfloat16), meant.bfloat16())


def works(kernel):
    """Whether this PyTorch has the product on the CPU at all, in one of its forms."""
    values, scale = torch.ones(16, 16).to(E4M3), torch.ones(16, 1)
    try:
        multiply(values, values.t(), scale, scale.t(), kernel=kernel, fast=True)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def test_a_product_is_found_where_there_is_one():
    """Which one the CPU has differs between versions of PyTorch; the one without a pass over the result goes first."""
    assert find_kernel(CPU) == next(filter(works, ("rows", "tensors")), None)


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_product_that_fails_or_is_wrong_is_not_taken(monkeypatch, fault):
    def broken(left, right, *scales, out_dtype, **_):
        if fault == "raises":
            raise NotImplementedError("there is no such product here")
        return torch.zeros(left.shape[0], right.shape[1], dtype=out_dtype)

    monkeypatch.setattr(fp8_compute, "scaled_mm", broken)
    find_kernel.cache_clear()
    try:
        assert find_kernel(CPU) is None
        assert type(make_layer("fp8_compute", random(48, 32))) is Fp8Linear
    finally:
        find_kernel.cache_clear()


@pytest.mark.parametrize("kernel", ["rows", "tensors"])
@pytest.mark.parametrize("bias", [None, random(32)])
def test_the_product_of_fp8_matrices_is_that_of_their_numbers(kernel, bias):
    """Its result is rounded to bf16, in one of the forms before the scales: 2^-9 of it."""
    if not works(kernel):
        pytest.skip(f"this PyTorch has no product with scales of {kernel} on the CPU")
    (left, left_scale), (right, right_scale) = quantize_rows(random(5, 48)), quantize_rows(random(32, 48, seed=1))
    result = multiply(left, right.t(), left_scale, right_scale.t(), bias, kernel=kernel, fast=True)
    expected = functional.linear(left.float() * left_scale, right.float() * right_scale, bias)
    assert ((result - expected).abs() <= expected.abs().max() * 2**-8).all()
    assert not torch.equal(result, torch.zeros_like(result))


@needs_product
@pytest.mark.parametrize("stored_dtype", [torch.float32, E4M3, E5M2])
@pytest.mark.parametrize("shape", [(48, 32), (16, 80)])
def test_fp8_compute_differs_from_the_dequantized_product_by_the_rounding_of_one_factor(stored_dtype, shape):
    weight = (0.1 * random(*shape)).to(stored_dtype)
    layer = make_layer("fp8_compute", weight, random(shape[0]), scale=torch.full((1, 1), 0.5))
    assert isinstance(layer, Fp8ComputeLinear)
    assert layer.weight.dtype == E4M3
    x, probe = random(2, 9, shape[1]).requires_grad_(), random(2, 9, shape[0], seed=1)
    y = layer(x)
    (y * probe).sum().backward()
    expected = functional.linear(x.detach(), layer.matrix(), layer.bias)
    expected_grad = probe @ layer.matrix()
    # The rounding errors of e4m3 (uniform, up to 2^-4 of each number) add up like noise.
    assert 1e-3 < (y - expected).norm() / (expected - layer.bias).norm() < 0.04
    assert 1e-3 < (x.grad - expected_grad).norm() / expected_grad.norm() < 0.04


def test_row_scales_of_any_size_leave_the_gradient_right():
    weight = spread(32, 48)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    layer = make_layer("fp8_compute", weight)
    x, probe = random(9, 48).requires_grad_(), random(9, 32, seed=1)
    (layer(x) * probe).sum().backward()
    expected = probe @ layer.matrix()
    assert (x.grad - expected).norm() / expected.norm() < 0.05


def test_sizes_that_the_kernel_cannot_take_are_stored_in_fp8():
    for shape in [(40, 32), (32, 40)]:
        assert type(make_layer("fp8_compute", random(*shape))) is Fp8Linear
