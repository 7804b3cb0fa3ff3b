"""The kernels themselves against `reference`. `test_kernels.py` runs these on a GPU, or in Triton's interpreter."""

import pytest
import torch
from wan_train.core.kernels import elementwise, norms, rotary, rows, shapes
from wan_train.tests.core.kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, L, T, N, K = 2, 4, 2, 3, 4
D = N * K


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE)


def assert_close(found, expected):
    for ours, plain in zip(found, expected, strict=True):
        assert (ours is None) == (plain is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["modulated", "affine", "rms"])
def test_norms(kind):
    x, grad, beside = random(B, L, D), random(B, L, D).flip(0), random(B, L, D) * 2
    mods = random(B, T, 3, D)
    weight, bias, factors = {
        "modulated": (mods[:, :, 1], mods[:, :, 0], (L // T, 3 * D, 1e-6)),
        "affine": (random(D), random(D).flip(0), (1, 0, 1e-6)),
        "rms": (random(D), None, (1, 0, 1e-6)),
    }[kind]
    options = {"add_one": kind == "modulated"}
    assert_close(*(room.norm(x, weight, bias, factors, **options, quantize=False) for room in (norms, reference)))
    for other, again in ((None, False), (beside, True)):
        given = x, weight, bias, grad, other, factors
        assert_close(*(room.norm_gradient(*given, **options, again=again) for room in (norms, reference)))


def test_a_norm_gives_itself_again_to_the_bit():
    x, weight, bias = random(3, 1, D), random(D), random(D) + 1
    y, _ = norms.norm(x, weight, bias, (1, 0, 1e-6), add_one=False, quantize=False)
    _, again = norms.norm_gradient(x, weight, bias, x, None, (1, 0, 1e-6), add_one=False, again=True)
    assert torch.equal(y, again)


def test_rotary_positions():
    x, weight, grad = random(B, L, D), random(D), random(B, L, N, K)
    for tokens in (L, B * L):  # of one table for all samples, or of each its own
        rope = random(2, tokens, K // 2)
        assert_close(*([room.rms_rope(x, weight, rope, 1e-6)] for room in (rotary, reference)))
        assert_close(*([room.rms_rope_gradient(x, weight, rope, grad, 1e-6)] for room in (rotary, reference)))


def test_gelu():
    x, grad = random(3, 5), random(3, 5).flip(0)
    assert_close(*(room.gelu(x, quantize=False) for room in (elementwise, reference)))
    assert_close(*(room.gelu_gradient(x, grad, again=True) for room in (elementwise, reference)))
    assert torch.equal(elementwise.gelu_gradient(x, grad, again=True)[1], elementwise.gelu(x, quantize=False)[0])


def test_rows_of_more_than_a_piece(monkeypatch):
    """Of which sums are taken, and results made, piece by piece; the last one is not whole."""
    shapes.piece_of.cache_clear()
    monkeypatch.setattr(shapes, "NARROW", {})
    monkeypatch.setattr(shapes, "_NARROW", shapes.Piece(8, 1))
    try:
        x, grad, weight, bias = random(B, L, D), random(B, L, D).flip(0), random(D), random(D).flip(0)
        x += 100  # of which a sum of squares would leave few digits
        given = x, weight, bias, grad, grad, (1, 0, 1e-6)
        assert shapes.piece_of("any", D).size < D
        found, expected = (r.norm_gradient(*given, add_one=False, again=True) for r in (norms, reference))
        for ours, plain in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-4)
        assert torch.equal(found[1], norms.norm(x, weight, bias, (1, 0, 1e-6), add_one=False, quantize=False)[0])
        test_norms("rms")
        test_rotary_positions()
        exact_rows()
    finally:
        shapes.piece_of.cache_clear()


def exact_rows():
    """Numbers that e4m3 has: 448 is the largest of a row, and the interpreter of Triton 3.9 rounds others wrongly."""
    values = torch.tensor([448.0, 2, -3, 0, 16, 0.5, -240, 1, 6, 0, 0, 20], device=DEVICE)
    x = torch.stack([values, -values, values.flip(0), values / 512])
    by = torch.tensor([1.0, 2.0], device=DEVICE).repeat(D // 2)
    times = torch.where(values.abs() < 448, by, 1.0)
    found = rows.quantize_rows(x / by, by)
    assert torch.equal(found.values.float() * found.scale, x)
    found = rows.quantize_rows(x)
    assert torch.equal(found.scale.flatten(), torch.tensor([1, 1, 1, 1 / 512], device=DEVICE))
    gate = times.view(1, 1, D)
    into = rows.ScaledRows(1 / times, *rows.new_rows(x))
    y = elementwise.gated(None, x, gate, 4, 0, None, into)
    assert torch.equal(y, x * times)
    assert torch.equal(into.values.float() * into.scale, x)


def test_rows_in_8_bits():
    exact_rows()


def test_gradients_leave_their_rows():
    """The largest number of each row is 448 times its scale; what is stored beside is as without them."""
    x, grad, weight, by = random(B, L, D), random(B, L, N, K), random(D), random(1, D).abs() + 0.5
    rope = random(2, L, K // 2)
    for make in (
        lambda rows=None: rotary.rms_rope_gradient(x, weight, rope, grad, 1e-6, rows),
        lambda rows=None: norms.norm_gradient(
            x, weight, None, grad.view(x.shape), None, (1, 0, 1e-6), add_one=False, rows=rows
        )[0],
        lambda rows=None: elementwise.gated(None, x, weight.view(1, 1, D), B * L, 0, None, rows),
    ):
        into = rows.ScaledRows(by, *rows.new_rows(x))
        dx = make(into)
        assert torch.equal(dx, make())
        largest = (dx.view(-1, D) * by).abs().amax(dim=1, keepdim=True)
        torch.testing.assert_close(into.scale, largest / 448)
        error = (into.values.float() * into.scale - dx.view(-1, D) * by).abs()
        # 2^-4 of a number; in the interpreter some that are rounded up to a power of two become half of it
        assert (error <= (0.07 if DEVICE == "cuda" else 0.52) * largest).all()


@pytest.mark.parametrize("in_place", [False, True])
def test_gates(in_place):
    x, y, gate = random(B, L, D), random(B, L, D).flip(1), random(B, T, 6, D)[:, :, 2]
    for residual in (x, None):
        copies = y.clone(), y.clone()
        found, expected = (
            room.gated(residual, each, gate, L // T, 6 * D, each if in_place else None)
            for room, each in zip((elementwise, reference), copies, strict=True)
        )
        assert_close([found], [expected])
        assert (found.data_ptr() == copies[0].data_ptr()) is in_place


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_weights_of_8_bits(dtype):
    every = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(dtype).view(2, 128)
    every = torch.where(every.float().isfinite(), every.float(), 0).to(dtype)
    scale = torch.tensor([[0.3], [2.0]], device=DEVICE)
    found = rows.dequantize_rows(every, scale, out=torch.empty(2, 128, device=DEVICE))
    assert torch.equal(found, every.float() * scale)


def test_transposition():
    weight = torch.arange(70 * 33, device=DEVICE).remainder(120).to(torch.uint8).view(70, 33).view(torch.float8_e4m3fn)
    found = rows.transposed(weight, out=weight.new_empty(weight.shape[::-1]))
    assert found.stride() == (1, 70)
    assert torch.equal(found.view(torch.uint8), weight.view(torch.uint8))
