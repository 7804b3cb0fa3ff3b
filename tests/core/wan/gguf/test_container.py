"""GGUF's container: header, positions, and files that are damaged or of another kind."""

import struct

import numpy as np
import pytest
import torch
from wan_train.core.errors import ModelFileError
from wan_train.core.wan.gguf import container, dequantize, open_header, read_gguf_header, read_stored
from wan_train.core.wan.header import content_digest
from wan_train.tests.core.wan.gguf.helpers import WAN, make_blocks, plain, write_gguf


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
        (b"GGUF", 4, "Q", 2**63, r"is said to have 9\d{18} tensors and 3 values of metadata, and 100000 are the limit"),
        (b"GGUF", 4, "Q", 99, "bytes are expected from its header, but the file has"),  # tensors
        (b"GGUF", 12, "Q", 2**63, "is said to have 3 tensors and 9"),  # values
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
        (FIRST_TENSOR, 0, "I", 2**31, "the tensor 'blocks.0.ffn.0.weight' is said to have 2147483648 axes"),
        (FIRST_TENSOR, 0, "I", 1_000_000, "the tensor 'blocks.0.ffn.0.weight' is said to have 1000000 axes"),
        (FIRST_TENSOR, 0, "I", 8, "bytes are expected from its header|is said to have the shape"),
        (FIRST_TENSOR, 4, "Q", 2**63, r"is said to have the shape \[\d+, 9223372036854775808\]"),
        (FIRST_TENSOR, 12, "Q", 2**47, r"is said to have the shape \[140737488355328, 512\]"),
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
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ModelFileError, match="its header is longer than 1000 bytes"):
        read_gguf_header(path)
