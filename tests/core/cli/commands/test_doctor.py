"""`wantrain doctor`: what it finds, what it advises, and when it says that training is possible."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.cli.commands.doctor import GIB, _machine_lines, _model_lines, problems, remedies, what_is_possible
from wan_train.core.cli.fits import what_fits
from wan_train.core.cli.inventory import list_models, weight_bytes
from wan_train.core.cli.machine import Gpu, Machine, Memory, Package, probe_package
from wan_train.core.cli.main import main
from wan_train.core.errors import ConfigError
from wan_train.core.packages import pip_command
from wan_train.core.plan.card import Card
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.adapters.helpers import write_model, write_random
from wan_train.tools.miniature import I2V_22, T2V, DiTSize, umt5, wan_dit, wan_vae

PACK = Path(__file__).resolve().parents[4]
WORKING = Package("peft", "training", True, "0.17.0")
MACHINE = Machine(
    python="3.11", system="Linux 6", packages=(WORKING,), cuda="13.0",
    gpus=(Gpu(0, "NVIDIA Small", "8.6", 24 * GIB, 23 * GIB), Gpu(1, "NVIDIA Busy", "8.6", 24 * GIB, 2 * GIB)),
    has_nvidia_driver=True, memory=Memory(64 * GIB, 32 * GIB), work_folder="/work", free_disk_bytes=100 * GIB,
    compiler="/usr/bin/g++", triton="3.6.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of several kinds, in two shards, damaged, and of no interest."""
    folder = tmp_path_factory.mktemp("models")
    size = DiTSize(num_layers=1)
    write_model(folder / "wan_t2v_high_noise.safetensors", size)
    write_model(folder / "i2v.safetensors", replace(I2V_22, num_layers=1))
    tensors = wan_dit(replace(size, dim=128, num_heads=1, text_dim=4096))  # such a file needs no header
    names = sorted(tensors)
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name] for name in chosen}, folder / f"set-0000{part}-of-00002.safetensors")
    save_file({**tensors, "vace_blocks.0.before_proj.weight": torch.zeros(2, 2)}, folder / "vace.safetensors")
    save_file(wan_vae(), folder / "vae.safetensors")
    save_file(umt5(), folder / "umt5.safetensors")
    for number in range(2):
        write_random(folder / f"lora_{number}.safetensors", T2V)
    (folder / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (folder / "readme.txt").write_text("not a model")
    return folder


def test_models_are_told_by_content(folder):
    found, others = list_models(folder)
    by_name = {Path(model.path).name: model for model in found}
    assert {name: model.is_trainable for name, model in by_name.items()} == {
        "broken.safetensors": False,
        "i2v.safetensors": True,
        "set-00001-of-00002.safetensors": True,  # both shards are one model
        "umt5.safetensors": False,
        "vace.safetensors": False,
        "vae.safetensors": False,
        "wan_t2v_high_noise.safetensors": True,
    }
    assert by_name["wan_t2v_high_noise.safetensors"].label == (
        "a Wan text-to-video model (high noise expert, as its name says)"
    )
    assert "cannot be trained yet" in by_name["vace.safetensors"].problem
    assert "broken.safetensors" in by_name["broken.safetensors"].problem
    assert by_name["vae.safetensors"].problem == ""
    assert others == {"a LoRA or another adapter": 2}
    info = inspect(folder / "i2v.safetensors")
    assert by_name["i2v.safetensors"].weight_bytes == weight_bytes(info) == info.num_bytes // 2  # float32 on disk


def test_the_command_prints_what_there_is_and_json_says_the_same(folder, tmp_path, capsys):
    arguments = ["doctor", "--models", str(folder), "--work", str(tmp_path / "not there yet")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    versions = {package["name"]: package["version"] for package in data["machine"]["packages"]}
    assert torch.__version__.startswith(versions["torch"])
    assert versions["peft"] == peft.__version__
    assert f"peft           {peft.__version__}" in text
    assert data["problems"] == []
    if not torch.cuda.is_available():
        assert text.endswith(
            "\n\nMiniature models can be trained here, for trying things out: Wan's own models need an NVIDIA GPU.\n"
        )
    assert text.strip().endswith(data["possible"])
    assert len(data["machine"]["gpus"]) == torch.cuda.device_count()
    assert data["machine"]["memory"]["total_bytes"] >= data["machine"]["memory"]["available_bytes"] > 0
    assert data["machine"]["free_disk_bytes"] > 0
    assert [model["path"] for model in data["models"]] == [model.path for model in list_models(folder)[0]]
    for model in data["models"]:
        assert model["path"] in text
    assert "2 x a LoRA or another adapter" in text


def test_without_a_model_that_can_be_trained_the_exit_code_says_so(folder, tmp_path, capsys):
    (tmp_path / "vae.safetensors").write_bytes((folder / "vae.safetensors").read_bytes())
    assert main(["doctor", "--models", str(tmp_path)]) == 1
    assert "No Wan model that can be trained" in capsys.readouterr().out
    assert main(["doctor", "--models", str(tmp_path / "absent")]) == 1
    with pytest.raises(ConfigError, match="absent does not exist"):
        list_models(tmp_path / "absent")


def test_it_says_which_models_can_be_trained(folder):
    found = list_models(folder)[0]
    full = replace(next(model for model in found if model.is_trainable), size="1.3B", weight_bytes=2_840_000_000)
    for models in (None, found, [*found, full]):
        assert what_is_possible(replace(MACHINE, gpus=()), models).startswith("Miniature models can be trained here")
    assert "the only models found are miniatures" in what_is_possible(MACHINE, found)
    assert what_is_possible(MACHINE, [*found, full]) == what_is_possible(MACHINE, None) == "Training is possible."


def test_a_missing_package_is_named_with_its_command():
    absent = probe_package("wantrain-absent", "wantrain_absent", "", "training")
    assert (absent.version, absent.works, absent.is_required) == ("", False, True)
    machine = replace(MACHINE, packages=(WORKING, absent))
    assert problems(machine, None) == ["wantrain-absent is not installed."]
    assert remedies(machine) == [f"for training: {pip_command('wantrain-absent')}"]
    assert pip_command("a").endswith(" -m pip install a")
    assert sys.executable in pip_command("a")


def test_a_package_that_cannot_be_imported_is_a_problem(tmp_path, monkeypatch):
    """A broken installation: metadata is there, importing it fails."""
    (tmp_path / "broken_pkg.py").write_text("raise OSError('libfoo.so: cannot open shared object file\\nmore')\n")
    info = tmp_path / "broken_pkg-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-pkg\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = probe_package("broken-pkg", "broken_pkg", "", "training")
    assert (package.version, package.works) == ("1.2", False)
    machine = replace(MACHINE, packages=(package,))
    assert problems(machine, None) == ["broken-pkg cannot be imported (libfoo.so: cannot open shared object file)."]
    assert remedies(machine) == [f"for training: {pip_command('--force-reinstall', 'broken-pkg')}"]
    too_old = probe_package("numpy", "numpy", "no_such_thing", "training")
    assert "no_such_thing" in too_old.problem


def test_an_optional_package_is_advice_and_no_problem():
    absent = Package("bitsandbytes", "the optimizer adamw8bit", False, "")
    machine = replace(MACHINE, packages=(WORKING, absent))
    assert problems(machine, None) == []
    assert remedies(machine) == [f"for the optimizer adamw8bit: {pip_command('bitsandbytes')}"]


def test_a_torch_that_cannot_use_the_gpu_and_a_missing_compiler_are_told():
    assert remedies(MACHINE) == []
    (line,) = remedies(replace(MACHINE, cuda="", gpus=()))
    assert line.startswith("to use the NVIDIA GPU, which this torch cannot: ")
    assert "--force-reinstall torch --index-url https://download.pytorch.org/whl/" in line
    assert remedies(replace(MACHINE, cuda="", gpus=(), has_nvidia_driver=False)) == []
    (line,) = remedies(replace(MACHINE, compiler="", triton="", system="Windows 11"))
    assert line == (
        f"for compiled training: {pip_command('triton-windows')}, and install a C++ compiler (Linux: g++; Windows: Build "
        "Tools for Visual Studio)"
    )


CARD = Card(
    name="NVIDIA Small", free=23 * GIB, total=24 * GIB, free_ram=60 * GIB, pinnable_ram=60 * GIB, matmul=1e14,
    matmul_fp32=3e13, attention=6e13, bandwidth=9e11, to_device=2e10, staged=8e9,
)  # fmt: skip


def test_what_fits_is_what_the_planner_says(folder):
    found, others = list_models(folder)
    lines = _model_lines(MACHINE, found, others, CARD)
    assert "on the NVIDIA Small" in lines[2]
    (start,) = (i for i, line in enumerate(lines) if "i2v.safetensors" in line)
    assert lines[start + 1].startswith("    weights while training, in bf16 or as a GGUF file holds them: 0.0 GiB")
    plans = lines[start + 2 : start + 8]
    for clip, plan in zip(("1024x1024x1", "832x480x33", "832x480x81") * 2, plans, strict=True):
        assert f"{clip}: " in plan
        assert "of 23.0 GB, about " in plan
        assert "for 1,000 steps" in plan
    assert [plan.split(",")[0].split()[-1] for plan in plans] == ["bf16"] * 3 + ["fp8"] * 3
    without = _model_lines(replace(MACHINE, gpus=()), found, others)
    assert not any("1,000 steps" in line for line in without)


def test_what_does_not_fit_is_told_with_what_would(folder):
    card = replace(CARD, free=GIB // 2, free_ram=3 * GIB, pinnable_ram=3 * GIB)
    lines = what_fits(folder / "i2v.safetensors", card, compiled=False)
    assert "does not fit: the leanest plan takes" in lines[2]


def test_how_several_gpus_reach_each_other():
    one, two = MACHINE.gpus

    def links(*gpus):
        return [line for line in _machine_lines(replace(MACHINE, gpus=gpus)) if "links" in line or "no direct" in line]

    assert links(one) == []
    assert "every GPU reaches the memory of every other" in links(replace(one, peers=(1,)), replace(two, peers=(0,)))[0]
    assert "no direct way between the GPUs 0 and 1" in links(one, two)[0]
