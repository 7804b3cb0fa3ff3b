import io
import json
import threading

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ModelFileError
from wan_train.core.wan import header as header_module
from wan_train.core.wan.header import SAMPLE_BYTES, content_digest, read_ahead, read_header, read_tensor


@pytest.fixture
def tensors():
    return {
        "a": torch.arange(12, dtype=torch.float32).view(3, 4),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "fp8": torch.tensor([[0.5, 448.0]]).to(torch.float8_e5m2),
    }


@pytest.fixture
def path(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"title": "x"})
    return path


def write_raw(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_reads_what_the_safetensors_library_wrote(path, tensors):
    header = read_header(path)
    assert header.metadata == {"title": "x"}
    assert set(header.entries) == set(tensors)
    with path.open("rb") as stream:
        for name, tensor in tensors.items():
            entry = header.entries[name]
            result = read_tensor(stream, entry, path)
            assert (result.dtype, result.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(result.double(), tensor.double())
            assert (entry.num_params, entry.num_bytes) == (tensor.numel(), tensor.numel() * tensor.element_size())


@pytest.mark.parametrize("lost", [1, 17, 60])
def test_truncated_data_names_expected_and_real_bytes(path, lost):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(
        ModelFileError,
        match=rf"model.safetensors' is damaged.*{size} bytes expected.* {size - lost} bytes; download it",
    ):
        read_header(path)


def test_truncated_header(path):
    length = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelFileError, match=rf"at least {8 + length} bytes expected, but the file has 50 bytes"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 200])
def test_no_header_at_all(path, content):
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"a safetensors header expected, but the file has {len(content)} bytes"):
        read_header(path)


def test_trailing_bytes(path):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"xyz")
    with pytest.raises(ModelFileError, match=rf"{size} bytes expected, but the file has {size + 3} bytes"):
        read_header(path)


def entry(shape, start, end, name="a", dtype="F32"):
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json}", "its header is not JSON"),
        (b"[1, 2]", "its header is not an object"),
        ({"a": 5}, "describes the tensor 'a' incompletely"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "describes the tensor 'a' incompletely"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "gives the tensor 'a' no valid shape"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, "gives the tensor 'a' no valid shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, r"shape \[2\] cannot fill 4 bytes as F32"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "bytes expected, but the file has"),
        ({"__metadata__": [], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None),
        ({"__metadata__": [1]}, "metadata is not an object"),
        (b"[" * 100_000, "its header is not JSON of this format .it is nested too deeply"),
        (b'{"a": {}, "a": {}}', "its header is not JSON of this format .a name occurs twice"),
        (entry([2**62, 4], 0, 4), "gives the tensor 'a' no valid shape"),
        (entry([0, 2**62], 0, 0), "gives the tensor 'a' no valid shape"),
        (entry([1] * 1_000_000, 0, 4), "gives the tensor 'a' no valid shape"),
        (entry([True], 0, 4), "gives the tensor 'a' no valid shape"),
        (entry([1], 4, 0), "gives the tensor 'a' no valid shape"),
        (entry([1], 0, 10**30), "gives the tensor 'a' no valid shape"),
        (entry([1], 0, 4, "a\0b"), r"a tensor whose name is no plain text, ''a.x00b''"),
        (entry([1], 0, 4, "\ud800"), "a tensor whose name is no plain text"),
        (entry([1], 0, 4, "a" * 5000), r"a tensor whose name is no plain text, 'a{200}\.\.\.'"),
        (
            {f"t{i}": entry([0], 0, 0)["a"] for i in range(100_001)},
            "its header lists 100001 tensors, and 100000 are the",
        ),
        (
            {**entry([1], 0, 4), **entry([1], 0, 4, "b")},
            "the tensor 'b' begins at byte [0-9]+, where [0-9]+ was expected",
        ),
        (
            {**entry([0], 0, 0), **entry([0], 4, 4, "b")},
            "the tensor 'b' begins at byte [0-9]+, where [0-9]+ was expected",
        ),
    ],
)
def test_damaged_header(path, header, message):
    write_raw(path, header, b"\0" * 4)
    if message is None:
        assert read_header(path).metadata == {}
        return
    with pytest.raises(ModelFileError, match=f"is damaged or incomplete: .*{message}"):
        read_header(path)


def test_file_that_shrinks_while_it_is_read(path):
    header = read_header(path)
    entry = header.entries["a"]
    path.write_bytes(path.read_bytes()[: entry.start + 8])
    with (
        path.open("rb") as stream,
        pytest.raises(ModelFileError, match=r"48 bytes expected at .*, but only 8 are there"),
    ):
        read_tensor(stream, entry, path)


@pytest.mark.parametrize("piece", [7, 16, 48, 100])
def test_a_large_tensor_is_read_in_pieces(path, monkeypatch, piece):
    entry = read_header(path).entries["a"]

    def read():
        with path.open("rb") as stream:
            return read_tensor(stream, entry, path)

    whole = read()
    monkeypatch.setattr(header_module, "PIECE_BYTES", piece)
    assert torch.equal(read(), whole)
    path.write_bytes(path.read_bytes()[: entry.start + 8])
    with pytest.raises(ModelFileError, match=r"48 bytes expected at .*, but only 8 are there"):
        read()


def test_a_file_that_goes_while_it_is_read(path, monkeypatch):
    entry = read_header(path).entries["a"]
    stream = io.BytesIO(path.read_bytes())
    path.unlink()
    monkeypatch.setattr(header_module, "PIECE_BYTES", 16)
    with pytest.raises(ModelFileError, match=r"cannot be read \(.*\); check the path"):
        read_tensor(stream, entry, path)


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"gone.safetensors' cannot be read \(.*\); check the path"):
        read_header(tmp_path / "gone.safetensors")


def test_digest_of_a_big_file_samples_it_from_end_to_end(tmp_path):
    path = tmp_path / "big.safetensors"
    data = torch.zeros(6_000_000, dtype=torch.uint8)
    save_file({"data": data}, path)
    digests = [content_digest(read_header(path))]
    for position in (0, SAMPLE_BYTES - 1, len(data) - 1):
        changed = data.clone()
        changed[position] = 1
        save_file({"data": changed}, path)
        digests.append(content_digest(read_header(path)))
    save_file({"other": data}, path)
    digests.append(content_digest(read_header(path)))
    assert len(set(digests)) == len(digests)


def test_one_item_is_read_ahead_and_no_more():
    read = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(read):
            event.set()
            yield number

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert read[1].wait(60)
    assert not read[2].is_set()
    assert list(ahead) == [1, 2, 3]


def test_what_reading_ahead_raises_comes_after_what_was_read():
    def items():
        yield 1
        raise ModelFileError("damaged")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ModelFileError, match="damaged"):
        next(ahead)


def test_metadata_that_is_no_text_becomes_one(path):
    write_raw(path, {"__metadata__": {"a": 5, "b": None, "c": "\ud800x", "d": [1]}})
    assert read_header(path).metadata == {"a": "5", "b": "None", "c": "?x", "d": "[1]"}


def test_an_unknown_type_is_told_when_it_is_read(path):
    write_raw(path, entry([8], 0, 4, dtype="F4"), b"1234")
    header = read_header(path)
    with path.open("rb") as stream, pytest.raises(ModelFileError, match="holds a tensor stored as F4, which cannot be"):
        read_tensor(stream, header.entries["a"], path)


def test_a_name_that_no_disk_can_have_and_a_folder(tmp_path):
    for path in (tmp_path / "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(ModelFileError, match="cannot be read"):
            read_header(path)
    with pytest.raises(ModelFileError, match="it is a folder, pipe or device; name a file"):
        read_header(tmp_path)


def test_a_tensor_is_read_into_memory_that_is_given(tmp_path):
    path = tmp_path / "model.safetensors"
    expected = torch.arange(24, dtype=torch.float32).view(4, 6)
    save_file({"x": expected}, path)
    entry = read_header(path).entries["x"]
    room, small = torch.zeros(128, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    with path.open("rb") as stream:
        found, other = (read_tensor(stream, entry, path, into) for into in (room, small))
    assert torch.equal(found, expected)
    assert found.data_ptr() == room.data_ptr()
    assert torch.equal(other, expected)  # in memory of its own
    assert not small.any()
