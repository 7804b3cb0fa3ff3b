"""The mark of a finished run: the LoRA that it names is the one that was written."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.errors import RunError
from wan_train.core.train.events import EventWriter
from wan_train.core.train.result import check_lora
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def finished(tmp_path, job):
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    return folder, train(folder)


def train(folder):
    return run_job(folder, EventWriter(folder.events_path), torch.device("cpu"), lambda: False)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))  # many a disk's clock has not moved on since the file was written


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_lora_is_not_finished_and_comes_again_from_the_checkpoint(finished, damage):
    folder, lora = finished
    assert folder.finished_lora(6) == lora
    before = load_file(lora)
    before = {key: tensor.clone() for key, tensor in before.items()}
    damage(lora)
    assert folder.finished_lora(6) is None
    assert train(folder) == lora
    assert folder.finished_lora(6) == lora
    after = load_file(lora)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_damaged_lora_is_not_merged(finished):
    folder, lora = finished
    check_lora(lora)
    flip(lora)
    with pytest.raises(RunError, match=r"is damaged.*damaged-test_low_noise.safetensors; start the run again"):
        check_lora(lora)
    assert not lora.exists()
    assert (folder.path / "damaged-test_low_noise.safetensors").is_file()


def test_a_lora_of_no_run_is_nobodys_business(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"x")
    check_lora(tmp_path / "x.safetensors")


def test_results_of_earlier_versions_count(finished):
    folder, lora = finished
    folder.result_path.write_text(json.dumps({"step": 6, "lora": lora.name}) + "\n")
    assert folder.finished_lora(6) == lora
    check_lora(lora)


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "text",
    [
        "5",
        "null",
        "[]",
        "",
        "{",
        "[" * 100_000,
        '{"step": 6, "lora": 5}',
        '{"step": "6", "lora": "test_low_noise.safetensors"}',
        '{"step": 6, "lora": "../run/test_low_noise.safetensors"}',
        '{"step": 6, "lora": ""}',
        '{"step": 6, "lora": "job.json\\u0000"}',
    ],
    ids=range(11),
)
def test_what_is_no_result_means_not_finished(finished, text):
    folder, _ = finished
    folder.result_path.write_text(text)
    assert folder.finished_lora(6) is None


def test_bytes_that_are_no_text_mean_not_finished(finished):
    folder, _ = finished
    folder.result_path.write_bytes(b"\xff\xfe\x00")
    assert folder.finished_lora(6) is None
    folder.workflow_path.write_bytes(b"\xff")
    assert folder.read_workflow() == {"workflow": None, "prompt": None}


def test_a_changed_digit_in_the_result_is_noticed(finished):
    folder, lora = finished
    text = folder.result_path.read_text()
    folder.result_path.write_text(text.replace('"step": 6', '"step": 7'))
    assert folder.finished_lora(7) is None
    folder.result_path.write_text(text)
    assert folder.finished_lora(6) == lora
