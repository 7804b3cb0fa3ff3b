"""`wantrain average` over a run folder and over files."""

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan_train.core.cli.main import main
from wan_train.tests.core.train.helpers import train_in_folder


@pytest.fixture
def run_folder(tmp_path, job):
    """With checkpoints of its steps 4 and 6."""
    train_in_folder(tmp_path, job, "run", torch.device("cpu"))
    return tmp_path / "runs" / "run"


def expected(folder, beta):
    first, last = (load_file(folder / "checkpoints" / f"step-{step:08d}" / "adapter.safetensors") for step in (4, 6))
    return {
        key: value if key.endswith(".alpha") else beta * first[key] + (1 - beta) * value for key, value in last.items()
    }


@pytest.mark.parametrize(("arguments", "beta"), [([], 0.95), (["--beta", "0.5"], 0.5)])
def test_the_checkpoints_of_a_run(run_folder, tmp_path, arguments, beta):
    out = tmp_path / "mean.safetensors"
    assert main(["average", str(run_folder), "--out", str(out), *arguments]) == 0
    found = load_file(out)
    for key, value in expected(run_folder, beta).items():
        torch.testing.assert_close(found[key], value)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["wantrain.weights"] == "post_hoc_ema"
    assert metadata["ss_steps"] == "6"
    assert metadata["modelspec.title"] == "mean"
    assert "wantrain.job" in metadata


def test_files_are_averaged_in_their_order(run_folder, tmp_path):
    out = tmp_path / "mean.safetensors"
    paths = [str(run_folder / "checkpoints" / f"step-{step:08d}" / "adapter.safetensors") for step in (4, 6)]
    assert main(["average", *paths, "--out", str(out), "--beta", "0.25"]) == 0
    found = load_file(out)
    for key, value in expected(run_folder, 0.25).items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{run}", "--out", "mean.gguf"], "name a file that ends in .safetensors"),
        (["{run}", "{run}", "--out", "mean.safetensors"], "one run folder is averaged alone"),
        (["{run}", "--out", "mean.safetensors", "--beta", "2"], "beta must be at least 0 and below 1, got 2."),
        (["{run}", "--out", "mean.safetensors", "--sigma-rel", "2"], "sigma_rel must be from 0.02 to 0.28, got 2."),
    ],
)
def test_what_cannot_be_is_a_sentence(run_folder, caplog, arguments, sentence):
    assert main(["average", *(argument.format(run=run_folder) for argument in arguments)]) == 1
    assert sentence in caplog.text


def test_a_single_checkpoint_is_no_mean(run_folder, caplog, tmp_path):
    shutil.rmtree(run_folder / "checkpoints" / "step-00000004")
    assert main(["average", str(run_folder), "--out", str(tmp_path / "mean.safetensors")]) == 1
    assert "keeps 1 checkpoint, and an average needs two or more" in caplog.text
