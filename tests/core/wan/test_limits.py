import json
import os
import struct

import pytest
import torch
from safetensors.torch import save as to_bytes
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.checks import check_config
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.files import find_files
from wan_train.core.wan.gguf import read_gguf_header
from wan_train.core.wan.limits import is_shape, parse_json, read_json_file, shown
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.wan.gguf.helpers import WAN, encode_text, plain, write_gguf


@pytest.mark.parametrize(
    ("shape", "right"),
    [
        ([], True),
        ((5120, 16, 1, 2, 2), True),
        ([0], True),
        ([2**48], True),
        ([2**24, 2**24, 2], False),
        ([0, 2**40, 2**40], False),
        ([1] * 9, False),
        ([-1], False),
        ([1.0], False),
        ([True], False),
        ("11", False),
        (None, False),
    ],
)
def test_shapes(shape, right):
    assert is_shape(shape) is right


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a" * 300, "a" * 200 + "..."),
        ("a\0", r"'a\x00'"),
        (10**5000, "of the type int"),
        ([1] * 500, "[1" + ", 1" * 66 + "..."),
    ],
    ids=["long", "unprintable", "large", "many"],
)
def test_values_from_files_fit_into_a_sentence(value, text):
    assert shown(value)[:203] == text[:203]


def test_json(tmp_path):
    assert parse_json(b'{"a": 1}', unique=True) == {"a": 1}
    for raw in (b"[" * 10**6, b'{"a": 1, "a": 2}', b"\xff", b"9" * 5000, b""):
        with pytest.raises(ValueError):  # noqa: PT011  the text is json's
            parse_json(raw, unique=True)
    path = tmp_path / "a.json"
    path.write_bytes(b" " * (2**26 + 1))
    with pytest.raises(ValueError, match="it has more than 67108864 bytes"):
        read_json_file(path)
    with pytest.raises(ValueError, match="it is no file"):
        read_json_file(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 10**9}, "num_layers 1000000000"),
        ({"num_layers": 2000}, "1000 layers and patches of 16 are the limits"),
        ({"text_dim": 2**40}, "cannot have text_dim"),
        ({"ffn_dim": 0}, "cannot have ffn_dim 0"),
        ({"patch_size": (1, 0, 2)}, r"cannot have patch_size \(1, 0, 2\)"),
        ({"eps": float("nan")}, "cannot have eps nan"),
    ],
)
def test_sizes_that_no_model_has(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(WanConfig(**sizes))


@pytest.mark.parametrize(
    "name", ["patch_embedding.weight", "text_embedding.0.weight", "blocks.0.ffn.0.weight", "head.head.weight"]
)
def test_an_empty_weight_is_told(save, tiny, name):
    weights = tiny.weights(tiny.small)
    weights[name] = torch.zeros(*(0 if i in (0, 3) else size for i, size in enumerate(weights[name].shape)))
    with pytest.raises(ModelFileError, match=r"model.safetensors"):
        inspect(save(weights, metadata=tiny.heads_metadata))


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000,
        '{"transformer": {"num_layers": 1000000000}}',
        '{"transformer": {"text_dim": 1099511627776}}',
        '{"transformer": {"eps": 1' + "0" * 400 + "}}",
        '{"transformer": {"eps": NaN, "num_heads": 2, "text_dim": 64}}',
        '{"transformer": {"num_heads": -2}}',
        '{"transformer": {"patch_size": [0, 0, 0]}}',
        '{"transformer": 5}',
    ],
)
def test_a_configuration_in_the_header_that_does_harm(save, tiny, config):
    path = save(tiny.weights(tiny.small), metadata={"config": config})
    with pytest.raises(ModelFileError, match=r"model.safetensors") as error:
        inspect(path)
    assert len(str(error.value)) < 1500


def test_a_block_of_a_huge_number(save, tiny):
    weights = tiny.weights(tiny.small)
    weights["blocks.999999999.ffn.0.weight"] = torch.ones(2, 2)
    weights["blocks." + "9" * 600 + ".ffn.0.weight"] = torch.ones(2, 2)
    with pytest.raises(ModelFileError, match="is not a plain Wan model: it has 2 unknown weights"):
        inspect(save(weights, metadata=tiny.heads_metadata))


def test_a_layer_format_of_many_bytes_and_of_deep_ones(save, tiny):
    for stored in (torch.zeros(20_000, dtype=torch.uint8), torch.full((9000,), ord("["), dtype=torch.uint8)):
        weights = tiny.weights(tiny.small)
        weights["blocks.0.ffn.0.comfy_quant"], weights["blocks.0.ffn.0.weight_scale"] = stored, torch.tensor(1.0)
        info = inspect(save(weights, metadata=tiny.heads_metadata))
        with pytest.raises(ModelFileError, match=r"'blocks.0.ffn.0.comfy_quant' does not name a quantization format"):
            load_transformer(info, dtype=torch.float32, device="cpu")


def test_a_tensor_without_axes_beside_a_scale(save, tiny):
    weights = tiny.weights(tiny.small)
    weights["blocks.0.ffn.0.weight"] = torch.tensor(1.0)
    weights["blocks.0.ffn.0.weight_scale"] = torch.ones(3, 1)
    with pytest.raises(ModelFileError, match=r"model.safetensors"):
        inspect(save(weights, metadata=tiny.heads_metadata))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": [1]}}',
        '{"weight_map": {"a": null}}',
        "9" * 5000,
    ],
)
def test_an_index_that_is_none(tmp_path, content):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(ModelFileError, match=r"shard index .* is damaged: it has no weight_map"):
        find_files(path)


def test_an_index_of_other_places_and_of_too_many(tmp_path):
    path = tmp_path / "sub" / "m.safetensors.index.json"
    path.parent.mkdir()
    (tmp_path / "secret.safetensors").write_bytes(to_bytes({"a": torch.ones(1)}))
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "..", "", "a\0b", "x" * 5000):
        path.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelFileError, match=r"1 of the 1 parts of the model in .* is missing"):
            find_files(path)
    path.write_text(json.dumps({"weight_map": {f"a{i}": f"{i}.safetensors" for i in range(2000)}}))
    with pytest.raises(ModelFileError, match="is said to have 2000 parts, and 1000 are the limit"):
        find_files(path)
    shard = path.with_name("m-00001-of-99999999999999.safetensors")
    shard.write_bytes(b"x")
    with pytest.raises(ModelFileError, match="says that it is one of 99999999999999 parts, and 1000 are the limit"):
        find_files(shard)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize(
    "name", ["a.safetensors", "a.gguf", "a-00001-of-00001.safetensors", "a.safetensors.index.json"]
)
def test_a_pipe_is_never_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelFileError):
        inspect(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (struct.pack("<I", 10**6) + bytes(8 * 10**6), "the tensor 'a' is said to have 1000000 axes"),
        (struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0), "the tensor 'a' is said to have the shape"),
        (struct.pack("<IQQIQ", 2, 0, 2**48, 0, 0), "bytes expected, but the file has|is said to have|damaged"),
        (struct.pack("<IQIQ", 1, 4, 0, 2**64 - 1), "bytes expected, but the file has"),
    ],
)
def test_a_gguf_table_that_claims_too_much(tmp_path, table, message):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + encode_text("a") + table)
    with pytest.raises(ModelFileError, match=message):
        read_gguf_header(path)


def test_gguf_lists_alignments_and_places(tmp_path):
    path = tmp_path / "a.gguf"
    words = encode_text("words") + struct.pack("<IIQ", 9, 0, 5_000_000) + bytes(5_000_000)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + words)
    with pytest.raises(ModelFileError, match="its lists have more than 4000000 items"):
        read_gguf_header(path)
    for alignment in (2**31, True):
        write_gguf(path, {"a": plain(torch.ones(2))}, {"general.alignment": alignment})
        if alignment is not True:  # the writer makes it 1
            with pytest.raises(ModelFileError, match="its alignment is 2147483648"):
                read_gguf_header(path)
    write_gguf(path, {"a": plain(torch.ones(8)), "b": plain(torch.ones(8))}, WAN)
    raw = path.read_bytes()
    at = raw.index(encode_text("b")) + 9 + 4 + 8 + 4
    path.write_bytes(raw[:at] + bytes(8) + raw[at + 8 :])
    with pytest.raises(ModelFileError, match=r"the tensor 'b' begins at byte [0-9]+, inside of another one"):
        read_gguf_header(path)
