"""What is no model is refused in a sentence."""

import json

import pytest
import torch
from wan_train.core.captioning.local_model import LocalModel, check_folder
from wan_train.core.errors import ModelFileError


def test_an_answer_that_ended_by_itself_was_not_cut(tiny_model):
    model = LocalModel(tiny_model, device="cpu")
    frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    ((long, was_cut),) = model.describe([frames], ["what?"], 12)
    assert was_cut
    first = model._model.generate(
        **model._processor(
            text=[model._prompt(1, "what?")], images=[[frames[0].numpy()]], return_tensors="pt"
        ),
        max_new_tokens=1, do_sample=False,
    )[0, -1].item()  # fmt: skip
    model._model.generation_config.eos_token_id = [first]
    ((short, was_cut),) = model.describe([frames], ["what?"], 12)
    assert not was_cut
    assert len(short) < len(long)


def test_no_folder(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        check_folder(tmp_path / "none")


def test_no_configuration(tmp_path):
    with pytest.raises(ModelFileError, match=r"holds no config\.json"):
        check_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"x"'])
def test_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match="names no model_type"):
        check_folder(tmp_path)


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(ModelFileError, match=r"no weights .* type qwen2_vl"):
        check_folder(tmp_path)


def test_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="cannot be loaded as a vision-language model"):
        LocalModel(tmp_path, device="cpu")
