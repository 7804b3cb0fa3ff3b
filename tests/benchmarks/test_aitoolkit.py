"""What AI-Toolkit is given to measure it. Its own run needs a checkout of it, and is not part of the tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan_train.benchmarks import aitoolkit
from wan_train.benchmarks.material import MODELS, Clip, random_pair
from wan_train.benchmarks.musubi import Peer

PACK = Path(__file__).resolve().parents[2]
CLIPS = [Clip(64, 32, 5), Clip(64, 64, 1)]


@pytest.fixture
def peer(tmp_path) -> Peer:
    model = tmp_path / "toy.safetensors"
    return Peer(checkout=tmp_path, model_name="toy", model=model, clips=CLIPS, work=tmp_path, steps=2, warmup=1)


def test_a_setting_names_options_by_section():
    options = aitoolkit.read_setting("compile=true qtype=float8 train.attention_backend=flash network.linear=8")
    assert options == {
        "model": {"compile": True, "qtype": "float8"},
        "train": {"attention_backend": "flash"},
        "network": {"linear": 8},
    }
    with pytest.raises(ValueError, match="'--compile' is no option"):
        aitoolkit.read_setting("--compile")
    with pytest.raises(ValueError, match="sample"):
        aitoolkit.read_setting("sample.width=8")


def test_the_job_has_the_setting_and_a_dataset_of_each_clip(tmp_path, peer):
    options = aitoolkit.read_setting("quantize=true train.optimizer=adafactor")
    path = aitoolkit.write_job(tmp_path / "job", peer, MODELS["toy"], options)
    (process,) = json.loads(path.read_text())["config"]["process"]
    assert (process["model"]["arch"], process["model"]["quantize"]) == ("wan21", True)
    assert (process["train"]["optimizer"], process["train"]["steps"]) == ("adafactor", 6)
    assert process["network"]["linear"] == 16
    sizes = json.loads((Path(process["model"]["name_or_path"]) / "transformer" / "config.json").read_text())
    assert (sizes["num_attention_heads"], sizes["attention_head_dim"], sizes["num_layers"]) == (2, 128, 3)
    for clip, dataset in zip(CLIPS, process["datasets"], strict=True):
        assert (dataset["num_frames"], dataset["num_repeats"]) == (clip.frames, 3)
        assert dataset["resolution"] ** 2 >= clip.width * clip.height
        folder = Path(dataset["folder_path"])
        stored = load_file(folder.with_suffix(".safetensors"))
        latents, text = random_pair(clip, MODELS["toy"])
        assert torch.equal(stored["latents"], latents)
        assert torch.equal(stored["text"][: len(text)], text)
        assert stored["text"].shape == (512, 4096)
        assert not stored["text"][len(text) :].any()


def test_the_first_steps_of_rounded_weights_are_kept_apart(peer):
    assert aitoolkit.first_steps(peer) != aitoolkit.first_steps(peer, quantized=True)


def test_the_version_is_read_from_the_checkout(tmp_path):
    (tmp_path / "version.py").write_text('VERSION = "0.12.26"\n')
    assert aitoolkit.version(tmp_path) == "0.12.26"


def test_a_wrong_setting_ends_the_command_before_anything_is_measured(tmp_path):
    command = [sys.executable, str(PACK / "benchmarks" / "speed.py"), "--out", str(tmp_path / "speed.json")]
    command += ["--model", "toy", "--aitoolkit", str(tmp_path), "--aitoolkit-args", "fast", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("'fast' is no option of AI-Toolkit")
    assert not (tmp_path / "speed.json").exists()
