"""GGUF: the container, every quantized type against a scalar reference, and a whole model that stays quantized."""

import hashlib
import re
import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from wan_train.core.adapters.setup import AdapterOptions, add_adapter
from wan_train.core.errors import ModelFileError
from wan_train.core.wan import gguf
from wan_train.core.wan.checkpoint import inspect, load_transformer
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.gguf import (
    QUANTS,
    QuantizedLinear,
    dequantize,
    keep_quantized,
    open_header,
    read_gguf_header,
    read_stored,
)
from wan_train.core.wan.header import content_digest
from wan_train.core.wan.identify import identify
from wan_train.core.wan.model import WanTransformer

# Scalar reference: one number at a time, as the format's description says ------------------------------------------

F = np.float32
TYPE_IDS = {"F32": 0, "F16": 1, "BF16": 30} | {name: quant.type_id for name, quant in QUANTS.items()}
HALVES = {  # where the fp16 factors of a block lie
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


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
    monkeypatch.setattr(gguf, "CPU_CHUNK", 1024)
    assert same_bits(dequantize(blocks, name, (-1,), torch.float32), whole)


# Container --------------------------------------------------------------------------------------------------------


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


def read_all(path):
    header = read_gguf_header(path)
    with path.open("rb") as stream:
        return {name: read_stored(stream, entry, path) for name, entry in header.entries.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "wan.gguf"


@pytest.fixture
def small_file(path):
    tensors = {
        "blocks.0.ffn.0.weight": ("Q4_K", (3, 512), make_blocks("Q4_K", 6)),
        "head.head.bias": plain(torch.arange(5.0)),
        "head.head.weight": plain(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), "BF16"),
    }
    return write_gguf(path, tensors)


@pytest.mark.parametrize(("version", "alignment"), [(2, 32), (3, 32), (3, 64)])
def test_header_gives_types_shapes_and_positions(path, version, alignment):
    values = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    raw = make_blocks("Q6_K", 4)
    tensors = {
        "patch_embedding.weight": plain(values, "F16"),
        "blocks.0.self_attn.q.weight": ("Q6_K", (2, 512), raw),
        "blocks.0.self_attn.q.bias": plain(torch.tensor([1.5, -2.0])),
    }
    more = {"general.alignment": alignment, "list": (1, 2), "words": ("a", "b"), "number": 0.5}
    write_gguf(path, tensors, WAN | more, version, alignment)
    header = read_gguf_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()} == {
        name: (kind, shape) for name, (kind, shape, _) in tensors.items()
    }
    assert header.entries["blocks.0.self_attn.q.weight"].num_params == 1024
    assert header.metadata["general.architecture"] == "wan"
    assert header.metadata["number"] == "0.5"
    assert header.num_bytes == path.stat().st_size
    stored = read_all(path)
    assert torch.equal(stored["patch_embedding.weight"], values.half())
    assert bytes(stored["blocks.0.self_attn.q.weight"].flatten().tolist()) == raw
    assert stored["blocks.0.self_attn.q.weight"].shape == (4, 210)
    assert stored["blocks.0.self_attn.q.bias"].tolist() == [1.5, -2.0]


def test_a_file_of_the_reference_writer_is_read(path):
    reference = pytest.importorskip("gguf")
    writer = reference.GGUFWriter(path, "wan")
    writer.add_quantization_version(2)
    values = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    packed = reference.quantize(values, reference.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks.0.self_attn.q.weight", packed, raw_dtype=reference.GGMLQuantizationType.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.patch_embedding.weight", (4, 16, 1, 2, 2))
    writer.add_tensor("patch_embedding.weight", values.reshape(1, 256))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = read_all(path)
    assert np.array_equal(stored["patch_embedding.weight"].numpy(), values.reshape(4, 16, 1, 2, 2))
    result = dequantize(stored["blocks.0.self_attn.q.weight"], "Q8_0", (4, 64), torch.float32)
    assert np.abs(result.numpy() - values).max() < 0.51 / 127


def test_original_shapes_are_restored(path):
    values = torch.arange(512.0).view(8, 16, 1, 2, 2)
    tensors = {
        "patch_embedding.weight": ("F32", (2, 256), plain(values)[2]),
        "blocks.0.modulation": plain(torch.ones(6, 8)),
        "head.modulation": plain(torch.ones(1, 2, 8)),
        "blocks.0.self_attn.q.weight": ("Q8_0", (2, 256), make_blocks("Q8_0", 16)),
    }
    shape = {"comfy.gguf.orig_shape.patch_embedding.weight": (8, 16, 1, 2, 2)}
    write_gguf(path, tensors, WAN | shape | {"comfy.gguf.orig_shape.blocks.0.self_attn.q.weight": (512,)})
    entries = read_gguf_header(path).entries
    assert entries["blocks.0.modulation"].shape == (1, 6, 8)
    assert entries["head.modulation"].shape == (1, 2, 8)
    assert entries["blocks.0.self_attn.q.weight"].shape == (512,)
    assert torch.equal(read_all(path)["patch_embedding.weight"], values)
    write_gguf(path, tensors, WAN | {"comfy.gguf.orig_shape.patch_embedding.weight": (8, 16)})
    with pytest.raises(ModelFileError, match=r"'patch_embedding.weight' of shape \[2, 256\] cannot have had the shape"):
        read_gguf_header(path)


def test_makers_that_name_no_architecture_are_read(path):
    for values in ({}, {"general.architecture": "pig"}):
        assert read_gguf_header(write_gguf(path, {"a": plain(torch.ones(2))}, values)).entries["a"].shape == (2,)


def test_equal_content_has_equal_digests(small_file, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(small_file.read_bytes())
    assert content_digest(read_gguf_header(copy)) == content_digest(read_gguf_header(small_file))
    copy.write_bytes(small_file.read_bytes()[:-1] + b"\x7f")
    assert content_digest(read_gguf_header(copy)) != content_digest(read_gguf_header(small_file))


def test_the_content_tells_the_format_not_the_name(small_file, save):
    assert open_header(small_file.rename(small_file.with_suffix(".safetensors"))).entries["head.head.bias"].shape == (
        5,
    )
    misnamed = save({"a": torch.ones(3)}, "model.gguf")
    assert open_header(misnamed).entries["a"].shape == (3,)
    with pytest.raises(ModelFileError, match=r"missing.gguf' cannot be read \(No such file"):
        open_header(misnamed.with_name("missing.gguf"))


@pytest.mark.parametrize("part", ["data", "tensor table", "metadata", "prologue"])
def test_truncated_files_name_expected_and_real_bytes(small_file, part):
    whole = small_file.read_bytes()
    size = {
        "data": len(whole) - 1,
        "tensor table": whole.index(b"head.head.weight") + 20,
        "metadata": whole.index(b"quantization_version") + 3,
        "prologue": 11,
    }[part]
    small_file.write_bytes(whole[:size])
    message = (
        rf"wan.gguf' is damaged or incomplete: .*\d+ bytes .*expected.* the file has {size} bytes; download it again"
    )
    with pytest.raises(ModelFileError, match=message):
        read_gguf_header(small_file)


FIRST_VALUE = b"general.architecture"
FIRST_TENSOR = b"blocks.0.ffn.0.weight"  # then the number of axes (4 bytes), 2 axes (8 each), type (4), offset (8)


@pytest.mark.parametrize(
    ("after", "skip", "code", "value", "message"),
    [
        (b"", 0, "4s", b"GGML", "is damaged or incomplete: it does not begin with 'GGUF'; download it again"),
        (
            b"GGUF",
            0,
            "I",
            1,
            "is a GGUF file of version 1, and only versions 2 and 3 can be read; use a file of the same",
        ),
        (b"GGUF", 0, "I", 0x03000000, "is a big-endian GGUF file, which cannot be read; use the little-endian file"),
        (b"GGUF", 4, "Q", 2**63, "bytes are expected from its header, but the file has"),  # tensors
        (b"GGUF", 12, "Q", 2**63, "is damaged or incomplete"),  # values
        (FIRST_VALUE, -28, "Q", 2**62, r"at least \d{19} bytes are expected from its header, but the file has"),
        (FIRST_VALUE, -1, "B", 0xFF, "has text that is not UTF-8, before byte 52"),
        (FIRST_VALUE, 0, "I", 99, "has a value of the unknown type 99"),
        (
            FIRST_VALUE,
            12,
            "3s",
            b"ltx",
            "is a GGUF file of the architecture 'ltx', not a Wan model; use a GGUF file of",
        ),
        (FIRST_TENSOR, 0, "I", 2**31, "bytes are expected from its header"),
        (FIRST_TENSOR, 4, "Q", 300, r"'blocks.0.ffn.0.weight' has rows of 300 numbers, but Q4_K has blocks of 256"),
        (
            FIRST_TENSOR,
            20,
            "I",
            23,
            r"in the GGUF type 23 \(IQ4_XS\), which cannot be trained; use a file .* Q8_0, Q6_K",
        ),
        (FIRST_TENSOR, 20, "I", 77, r"in the GGUF type 77, which cannot be trained; use"),
        (FIRST_TENSOR, 24, "Q", 2**40, r"\d{13} bytes expected, but the file has \d+ bytes; download"),
    ],
)
def test_damaged_and_foreign_files_are_refused_by_sentences(small_file, after, skip, code, value, message):
    raw = bytearray(small_file.read_bytes())
    struct.pack_into("<" + code, raw, raw.index(after) + len(after) + skip, value)
    small_file.write_bytes(raw)
    with pytest.raises(ModelFileError, match=message) as error:
        read_gguf_header(small_file)
    assert str(small_file) in str(error.value)


def test_more_files_that_cannot_be_read(path, monkeypatch):
    with pytest.raises(ModelFileError, match=r"wan.gguf' cannot be read \(No such file .*; check the path"):
        read_gguf_header(path)
    write_gguf(path, {"a": plain(torch.ones(2)), "b": plain(torch.ones(2))})
    path.write_bytes(path.read_bytes().replace(b"\1\0\0\0\0\0\0\0b", b"\1\0\0\0\0\0\0\0a"))
    with pytest.raises(ModelFileError, match="two of its tensors have the same name"):
        read_gguf_header(path)
    write_gguf(path, {"a": plain(torch.ones(2))}, {"general.alignment": 0}, alignment=1)
    with pytest.raises(ModelFileError, match="its alignment is 0"):
        read_gguf_header(path)
    write_gguf(path, {"a": plain(torch.ones(2))}, {"words": ("x" * 600, "y" * 600)})
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ModelFileError, match="its header is longer than 1000 bytes"):
        read_gguf_header(path)


# Layer ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """A quantized layer, and a plain one with the numbers it means."""
    raw = make_blocks("Q4_K", 96 * 2, factor=0.01)
    plain_layer = nn.Linear(512, 96)
    with torch.no_grad():
        plain_layer.weight.copy_(dequantize(to_blocks(raw), "Q4_K", (96, 512), torch.float32))
    layer = QuantizedLinear(512, 96, "Q4_K", bias=True, device=torch.device("cpu"))
    layer.load_state_dict({"weight": to_blocks(raw).view(-1, 144), "bias": plain_layer.bias.detach().clone()})
    return layer, plain_layer.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_computes_what_the_plain_layer_computes(pair, dtype):
    layer, plain_layer = pair[0].to(dtype), pair[1].to(dtype)
    assert layer.weight.dtype == torch.uint8
    x = torch.randn(2, 5, 512, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads, outputs = [], []
    for module in (layer, plain_layer):
        given = x.clone().requires_grad_()
        outputs.append(module(given))
        outputs[-1].float().square().sum().backward()
        grads.append(given.grad)
    assert torch.equal(*outputs)
    assert torch.equal(*grads)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_nothing_but_the_blocks_is_kept_for_the_backward(pair):
    def kept(module):
        tensors = []

        def pack(tensor):
            tensors.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(torch.ones(1, 512, requires_grad=True))
        return [(tensor.dtype, tensor.numel()) for tensor in tensors]

    layer, plain_layer = pair
    assert kept(layer) == [(torch.uint8, 96 * 2 * 144)]
    assert (torch.float32, 96 * 512) in kept(plain_layer)


# A whole model ----------------------------------------------------------------------------------------------------

CONFIG = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=256)
BLOCK_LINEAR = re.compile(r"blocks\.\d+\.(?:self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02])\.weight")
TYPES = {  # of the block linears; all others in turn
    "self_attn.q": "Q4_K", "self_attn.k": "Q5_K", "self_attn.v": "Q6_K", "self_attn.o": "Q3_K",
    "cross_attn.q": "Q2_K", "cross_attn.k": "Q5_1", "cross_attn.v": "Q5_0", "cross_attn.o": "Q4_1",
    "ffn.0": "Q8_0", "ffn.2": "Q4_0",
}  # fmt: skip
LEVELS = {"Q8_0": 127, "Q4_0": 7}


def quantize_absmax(values, name):
    """Blocks of 32 whose largest number has the largest level; Q8_0 and Q4_0."""
    blocks = values.reshape(-1, 32)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / LEVELS[name]).half()
    levels = (blocks / scale.float()).round().clamp(-LEVELS[name], LEVELS[name]).to(torch.int8)
    if name == "Q4_0":
        levels = (levels + 8).view(torch.uint8)
        levels = levels[:, :16] | levels[:, 16:] << 4
    return torch.cat([scale.view(torch.uint8), levels.view(torch.uint8)], dim=1).numpy().tobytes()


def encode(name, values):
    """(type, shape, bytes) as in a file of mixed types: norms, biases and modulations in fp32, the rest quantized."""
    layer = name.removesuffix(".weight")
    kind = next((TYPES[end] for end in TYPES if layer.endswith(end)), "Q8_0")
    if values.ndim == 5:
        return plain(values, "F16")
    if values.ndim != 2:
        return plain(values.squeeze(0) if name == "blocks.0.modulation" else values)
    if name == "head.head.weight":
        return plain(values, "BF16")
    if kind in LEVELS:
        return kind, tuple(values.shape), quantize_absmax(values, kind)
    factor = 2e-3 if QUANTS[kind].block_size == 32 else 1e-4
    return kind, tuple(values.shape), make_blocks(kind, values.numel() // QUANTS[kind].block_size, name, factor)


def meant(kind, shape, raw):
    """The fp32 numbers that a tensor of the file means."""
    if kind in QUANTS:
        return dequantize(to_blocks(raw), kind, shape, torch.float32)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return torch.frombuffer(bytearray(raw), dtype=dtype).float().view(shape)


@pytest.fixture(scope="module")
def encoded(tiny):
    return {name: encode(name, values) for name, values in tiny.weights(CONFIG).items()}


@pytest.fixture(scope="module")
def model_file(encoded, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "Wan2.2-T2V-HighNoise-Q4_K_M.gguf", encoded)


@pytest.fixture(scope="module")
def reference(tiny, encoded):
    """The plain model whose weights are the dequantized ones."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in WanTransformer(CONFIG).state_dict().items()}
    return tiny.model(CONFIG, {name: meant(*value).view(shapes[name]) for name, value in encoded.items()})


def load_quantized(path):
    """The block linears as they are stored, all else in fp32."""
    header = read_gguf_header(path)
    with torch.device("meta"):
        model = WanTransformer(CONFIG)
    state = {}
    with path.open("rb") as stream:
        for name, entry in header.entries.items():
            stored = read_stored(stream, entry, path)
            if BLOCK_LINEAR.fullmatch(name):
                keep_quantized(model, name.removesuffix(".weight"), entry.dtype)
            elif entry.dtype in QUANTS:
                stored = dequantize(stored, entry.dtype, entry.shape, torch.float32)
            state[name] = stored if stored.dtype == torch.uint8 else stored.float()
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def test_the_file_is_recognised_by_its_header(model_file):
    header = read_gguf_header(model_file)
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    assert identify(shapes).variant == "t2v"
    with torch.device("meta"):
        assert shapes == {name: tuple(value.shape) for name, value in WanTransformer(CONFIG).state_dict().items()}
    assert {entry.dtype for entry in header.entries.values()} == {*QUANTS, "F32", "F16", "BF16"}


def test_quantized_numbers_are_near_the_weights(encoded, tiny):
    weights = tiny.weights(CONFIG)
    for name, bound in [("blocks.0.ffn.0.weight", 0.51 / 127), ("blocks.1.ffn.2.weight", 0.51 / 7)]:
        rows = weights[name].view(-1, 32)
        errors = (meant(*encoded[name]).view(-1, 32) - rows).abs().amax(dim=1) / rows.abs().amax(dim=1)
        assert 0 < errors.max() < bound * 1.01


def test_forward_and_gradients_equal_those_of_the_dequantized_model(model_file, reference, tiny):
    model = load_quantized(model_file)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 20
    inputs = tiny.inputs(CONFIG, frames=2, height=4, width=6, tokens=32)
    results = tiny.forward_and_gradients(model, inputs)
    expected = tiny.forward_and_gradients(reference, inputs)
    assert all(torch.isfinite(value).all() and value.abs().max() > 0 for value in expected)
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_checkpoint_reads_it_like_any_other_file(tmp_path, encoded, reference, tiny, prefix):
    path = write_gguf(tmp_path / "wan.gguf", {prefix + name: value for name, value in encoded.items()})
    info = inspect(path)
    assert (info.config, info.weights) == (CONFIG, "q8_0")
    assert info.num_params == sum(value.numel() for value in reference.state_dict().values())
    assert info.num_bytes == sum(len(raw) for _, _, raw in encoded.values())
    model = load_transformer(info, dtype=torch.float32, device="cpu")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inputs = tiny.inputs(CONFIG, frames=2, height=4, width=6, tokens=32)
    results = tiny.forward_and_gradients(model, inputs)
    assert all(map(torch.equal, results, tiny.forward_and_gradients(reference, inputs)))
    half_precision = load_transformer(info, dtype=torch.bfloat16, device="cpu")
    assert half_precision.dtype == torch.bfloat16
    assert tiny.errors(tiny.forward_and_gradients(half_precision, inputs)[0], results[0])[1] < 0.02


def test_checkpoint_refuses_what_is_not_gguf_in_spite_of_its_name(tmp_path):
    path = tmp_path / "wan.gguf"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFileError, match=r"wan.gguf' is no GGUF file in spite of its name, so the download went"):
        inspect(path)


def test_a_lora_trains_on_it_as_on_the_dequantized_model(model_file, reference, tiny):
    gradients = []
    inputs = tiny.inputs(CONFIG, frames=1, height=4, width=4, tokens=16)
    for model in (load_quantized(model_file), tiny.model(CONFIG, reference.state_dict())):
        parameters = add_adapter(model, AdapterOptions(rank=2), seed=3)
        with torch.no_grad():
            for name, parameter in parameters:
                if "lora_B" in name:
                    parameter.fill_(0.01)
        functional.mse_loss(model(inputs.latents, inputs.timesteps, inputs.context), inputs.probe).backward()
        gradients.append({name: parameter.grad for name, parameter in parameters})
    assert len(gradients[0]) == 40
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, gradients[1][name])
