"""Every quantized type against a scalar reference, and against the reference library."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from wan_train.core.wan.gguf import QUANTS, dequantize, types
from wan_train.tests.core.wan.gguf.helpers import make_blocks, same_bits, to_blocks

F = np.float32


# Scalar reference: one number at a time, as the format's description says


def half(block, at):
    return F(struct.unpack_from("<e", block, at)[0])


def signed(byte):
    return byte - 256 if byte > 127 else byte


def nibble(codes, i, count):
    """Number i of 2 * count numbers: the low halves of all bytes come first."""
    return codes[i] & 15 if i < count else codes[i - count] >> 4


def scale_and_minimum(packed, group):
    """6 bits each of 12 bytes; those of the last four groups are spread over two bytes."""
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    last = packed[group + 4]
    return (last & 15) | (packed[group - 4] >> 6) << 4, last >> 4 | (packed[group] >> 6) << 4


def scale_q3(packed, group):
    low = packed[group] & 15 if group < 8 else packed[group - 8] >> 4
    return (low | (packed[8 + group % 4] >> 2 * (group // 4) & 3) << 4) - 32


def scalar_small(name, b, i):
    """Number i of 32."""
    if name == "Q8_0":
        return half(b, 0) * F(signed(b[2 + i]))
    if name == "Q4_0":
        return half(b, 0) * F(nibble(b[2:], i, 16) - 8)
    if name == "Q4_1":
        return half(b, 0) * F(nibble(b[4:], i, 16)) + half(b, 2)
    at = 2 if name == "Q5_0" else 4
    fifth = int.from_bytes(b[at : at + 4], "little") >> i & 1
    level = nibble(b[at + 4 :], i, 16) | fifth << 4
    return half(b, 0) * F(level - 16) if name == "Q5_0" else half(b, 0) * F(level) + half(b, 2)


def scalar_large(name, b, i):
    """Number i of 256: half h of 128, quarter of 32 within it, place in the quarter."""
    h, quarter, place = i // 128, i % 128 // 32, i % 32
    if name == "Q2_K":
        level = b[16 + 32 * h + place] >> 2 * quarter & 3
        return half(b, 80) * F(b[i // 16] & 15) * F(level) - half(b, 82) * F(b[i // 16] >> 4)
    if name == "Q3_K":
        level = b[32 + 32 * h + place] >> 2 * quarter & 3
        level -= 0 if b[place] >> (i // 32) & 1 else 4
        return half(b, 108) * F(scale_q3(b[96:108], i // 16)) * F(level)
    if name == "Q6_K":
        low = b[64 * h + 32 * (quarter % 2) + place]
        low = low & 15 if quarter < 2 else low >> 4
        level = (low | (b[128 + 32 * h + place] >> 2 * quarter & 3) << 4) - 32
        return half(b, 208) * F(signed(b[192 + i // 16])) * F(level)
    codes = b[16:] if name == "Q4_K" else b[48:]
    level = nibble(codes[32 * (i // 64) : 32 * (i // 64) + 32], i % 64, 32)
    if name == "Q5_K":
        level |= (b[16 + place] >> (i // 32) & 1) << 4
    scale, minimum = scale_and_minimum(b[4:16], i // 32)
    return half(b, 0) * F(scale) * F(level) - half(b, 2) * F(minimum)


def scalar_dequantize(name, raw):
    quant = QUANTS[name]
    number = scalar_small if quant.block_size == 32 else scalar_large
    blocks = [raw[at : at + quant.num_bytes] for at in range(0, len(raw), quant.num_bytes)]
    return torch.tensor(np.array([number(name, block, i) for block in blocks for i in range(quant.block_size)]))


@pytest.mark.parametrize("name", QUANTS)
def test_every_type_equals_the_scalar_reference_bit_for_bit(name):
    raw = make_blocks(name, 6)
    expected = scalar_dequantize(name, raw)
    result = dequantize(to_blocks(raw), name, (3, -1), torch.float32)
    assert same_bits(result.flatten(), expected)
    assert torch.equal(dequantize(to_blocks(raw), name, (3, -1), torch.bfloat16), expected.view(3, -1).bfloat16())


# sha256 of what gguf 0.19.0 (pypi.org/project/gguf) makes of make_blocks(name, 40), fp32
FROZEN = {
    "Q8_0": "e97d6be1fec9e71a",
    "Q6_K": "f9584fc4ed865c1b",
    "Q5_K": "c4297e34c2992add",
    "Q5_1": "106b701d69ee0b6f",
    "Q5_0": "8e07eee9751145ce",
    "Q4_K": "51a115fb6eace26e",
    "Q4_1": "e8d99c2f5fd0929d",
    "Q4_0": "0ad92ab125981e6b",
    "Q3_K": "4e3d68cf6239f135",
    "Q2_K": "7dc5339a7f40e0a5",
}


def digest(values):
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", QUANTS)
def test_every_type_equals_the_reference_library(name):
    raw = make_blocks(name, 40)
    assert digest(dequantize(to_blocks(raw), name, (40, -1), torch.float32).numpy()) == FROZEN[name]


@pytest.mark.parametrize("name", QUANTS)
def test_the_installed_reference_library_agrees(name):
    reference = pytest.importorskip("gguf")
    raw, kind = make_blocks(name, 40, "other"), reference.GGMLQuantizationType[name]
    assert reference.GGML_QUANT_SIZES[kind] == (QUANTS[name].block_size, QUANTS[name].num_bytes)
    assert kind.value == QUANTS[name].type_id
    blocks = np.frombuffer(raw, np.uint8).reshape(40, -1)
    expected = torch.from_numpy(reference.dequantize(blocks, kind))
    assert same_bits(dequantize(to_blocks(raw), name, tuple(expected.shape), torch.float32), expected)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_chunks_join_without_a_seam(monkeypatch, name):
    blocks = to_blocks(make_blocks(name, 37))
    whole = dequantize(blocks, name, (-1,), torch.float32)
    monkeypatch.setattr(types, "CPU_CHUNK", 1024)
    assert same_bits(dequantize(blocks, name, (-1,), torch.float32), whole)
