"""Random blocks of every type, and a writer of GGUF files."""

import hashlib
import struct

import numpy as np
import torch
from wan_train.core.wan.gguf import QUANTS

TYPE_IDS = {"F32": 0, "F16": 1, "BF16": 30} | {name: quant.type_id for name, quant in QUANTS.items()}
HALVES = {  # where the fp16 factors of a block lie
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def make_blocks(name, count, seed="", factor=None):
    """Random blocks; their fp16 factors are finite, of any sign, some of them subnormal - or all `factor`."""
    quant = QUANTS[name]
    raw = np.frombuffer(hashlib.shake_256((name + seed).encode()).digest(count * quant.num_bytes), np.uint8)
    blocks = raw.reshape(count, quant.num_bytes).copy()
    for at in HALVES[name]:
        blocks[:, at + 1] &= 0xBF  # no exponent of 16 and above: magnitudes below 2
        if factor is not None:
            blocks[:, at : at + 2] = np.frombuffer(struct.pack("<e", factor), np.uint8)
    return blocks.tobytes()


def to_blocks(raw):
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def same_bits(a, b):
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def encode_text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def encode_value(value):
    """Type and value, as the converters write them."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + encode_text(value)
    if isinstance(value, tuple) and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(encode_text, value))
    if isinstance(value, tuple):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


WAN = {"general.architecture": "wan", "general.quantization_version": 2, "general.file_type": 7}


def write_gguf(path, tensors, values=WAN, version=3, alignment=32):
    """`tensors`: name to (type, torch's shape, bytes)."""
    table, data = b"", b""
    for name, (kind, shape, raw) in tensors.items():
        data += bytes(-len(data) % alignment)
        type_id = TYPE_IDS.get(kind, kind)
        table += encode_text(name) + struct.pack(f"<I{len(shape)}QI", len(shape), *reversed(shape), type_id)
        table += struct.pack("<Q", len(data))
        data += raw
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    header += b"".join(encode_text(name) + encode_value(value) for name, value in values.items()) + table
    path.write_bytes(header + bytes(-len(header) % alignment) + data)
    return path


def plain(values, kind="F32"):
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return kind, tuple(values.shape), values.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
