"""Pickle files: nothing but tensors, or refused before anything runs."""

import os
from pathlib import Path

import pytest
import torch
from wan_train.core.encoders.text import load_text_encoder
from wan_train.core.encoders.vae import load_video_encoder
from wan_train.core.encoders.weights import open_weights, read_one
from wan_train.core.errors import ModelFileError


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("load", [load_video_encoder, load_text_encoder])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, load, is_zip):
    path, trace = tmp_path / "Wan2.1_VAE.pth", tmp_path / "ran"
    content = {"conv1.weight": torch.zeros(2), "x": Program(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ModelFileError, match=r"was not opened: .* can run programs .* use the \.safetensors file"):
        load(path, "cpu")
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file is what it claims to be


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_truncated_pickle_is_refused(tmp_path, is_zip):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(5000)}, path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:-6000])
    with pytest.raises(ModelFileError, match=r"damaged or incomplete|was not opened"):
        open_weights(path)


def test_weights_may_lie_one_level_down(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(3.0)}, "step": 7}, tmp_path / "model.pth")
    weights = open_weights(tmp_path / "model.pth")
    assert weights.shapes == {"a": (3,)}
    assert torch.equal(read_one(weights, "a"), torch.arange(3.0))
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds no weights by name"):
        open_weights(tmp_path / "list.pth")


def test_what_was_read_outlives_the_file(tmp_path):
    torch.save({"a": torch.arange(4000.0)}, tmp_path / "model.pth")
    tensor = read_one(open_weights(tmp_path / "model.pth"), "a")
    with (tmp_path / "model.pth").open("r+b") as file:
        file.write(b"\0" * 10_000)
    assert torch.equal(tensor, torch.arange(4000.0))


def test_gguf_is_refused(tmp_path):
    (tmp_path / "umt5-xxl-encoder-Q8_0.gguf").write_bytes(b"GGUF\x03" + bytes(100))
    with pytest.raises(ModelFileError, match=r"is a GGUF file, .* use the \.safetensors file"):
        open_weights(tmp_path / "umt5-xxl-encoder-Q8_0.gguf")
