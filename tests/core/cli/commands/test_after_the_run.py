"""The commands for what one does with LoRAs after the run."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.cli.main import main
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.adapters.helpers import write_model, write_random
from wan_train.tools.miniature import T2V

SIZE = replace(T2V, num_layers=2)


@pytest.fixture
def one(tmp_path):
    return write_random(tmp_path / "one_low_noise.safetensors", SIZE, 1, rank=4)


@pytest.fixture
def two(tmp_path):
    return write_random(tmp_path / "two_low_noise.safetensors", SIZE, 2, rank=4)


def test_several_are_merged_with_their_strengths(one, two, tmp_path, caplog):
    out = ["--out", str(tmp_path / "out"), "--precision", "fp32"]
    with caplog.at_level(logging.INFO):
        assert main(["merge", f"{one}=0.5", f"{two}=-2", str(one), "--name", "sum", *out]) == 0
    made = read_lora(tmp_path / "out" / "sum_low_noise.safetensors")
    for path, module in made.modules.items():
        wanted = 1.5 * read_lora(one).modules[path].delta() - 2 * read_lora(two).modules[path].delta()
        torch.testing.assert_close(module.delta(), wanted, atol=1e-4, rtol=1e-4)
    assert "merged of one_low_noise.safetensors and two_low_noise.safetensors" in caplog.text
    arguments = ["merge", str(one), str(two), "--method", "dare_ties", "--rank", "3", "--seed", "9", "--name", "dare"]
    assert main([*arguments, "--device", "cpu", *out]) == 0
    made = read_lora(tmp_path / "out" / "dare_low_noise.safetensors")
    assert made.ranks == (3,)
    said = json.loads(made.metadata["wantrain.made"])
    assert (said["method"], said["density"], said["seed"]) == ("dare_ties", 0.5, 9)
    assert said["strengths"] == [1.0, 1.0]


def test_high_with_low_is_written_with_a_warning(one, tmp_path, caplog):
    high = write_random(tmp_path / "one_high_noise.safetensors", SIZE, 3)
    with caplog.at_level(logging.INFO):
        assert main(["merge", str(one), str(high), "--out", str(tmp_path / "out"), "--name", "both"]) == 0
    assert "not of one expert" in caplog.text
    assert (tmp_path / "out" / "both.safetensors").exists()


def test_one_is_changed(one, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    assert main(["change", str(one), "--rank", "2", "--drop-blocks", "0", "--drop-layers", "ffn", *out]) == 0
    made = read_lora(tmp_path / "out" / "changed_lora_low_noise.safetensors")
    assert made.ranks == (2,)
    assert all(path.startswith("blocks.1.") and "attn" in path for path in made.modules)
    assert main(["change", str(one), "--key-style", "kohya", "--name", "k", "--precision", "fp32", *out]) == 0
    kohya = read_lora(tmp_path / "out" / "k_low_noise.safetensors")
    assert kohya.style == "kohya"
    for path, module in read_lora(one).modules.items():
        assert torch.equal(kohya.modules[path].delta(), module.delta())
    assert main(["change", str(one), "--energy", "0.9", "--name", "e", *out]) == 0
    for path, module in read_lora(tmp_path / "out" / "e_low_noise.safetensors").modules.items():
        values = torch.linalg.svdvals(read_lora(one).modules[path].delta().double())[:4].square()
        assert module.rank == int((values.cumsum(0) / values.sum() < 0.9).sum()) + 1


def test_a_lora_is_folded_and_extracted_again(one, tmp_path):
    base, model = write_model(tmp_path / "wan_low_noise.safetensors", SIZE), tmp_path / "folded.safetensors"
    assert main(["fold", f"{one}=0.5", "--model", str(base), "--out", str(model)]) == 0
    assert load_file(model).keys() == load_file(base).keys()
    arguments = ["--tuned", str(model), "--rank", "4", "--precision", "fp32", "--device", "cpu", "--name", "again"]
    assert main(["extract", "--base", str(base), *arguments, "--out", str(tmp_path)]) == 0
    made = read_lora(tmp_path / "again_low_noise.safetensors")
    assert made.metadata["modelspec.timestep_range"] == "0,875"
    for path, module in read_lora(one).modules.items():
        torch.testing.assert_close(made.modules[path].delta(), 0.5 * module.delta(), atol=1e-4, rtol=1e-3)
    assert inspect(model).config == inspect(base).config


def test_a_lora_is_checked(one, tmp_path, capsys):
    base = write_model(tmp_path / "wan_low_noise.safetensors", SIZE)
    assert main(["check-lora", str(one)]) == 0
    assert capsys.readouterr().out.startswith("one_low_noise.safetensors is sound")
    inputs = {"lora_name": "one_low_noise.safetensors", "strength_model": 0}
    workflow = tmp_path / "w.json"
    workflow.write_text(json.dumps({"1": {"class_type": "LoraLoaderModelOnly", "inputs": inputs}}), encoding="utf-8")
    arguments = ["check-lora", str(one), "--model", str(base), "--workflow", str(workflow), "--device", "cpu"]
    assert main(arguments) == 1
    assert capsys.readouterr().out.startswith("The strength is 0 in node 1 (LoraLoaderModelOnly). Set it to 1.")
    assert main([*arguments, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert len(data["layers"]) == 20
    assert set(data["by_block"]) == {"block 0", "block 1"}
    assert len(data["effect"]) == 9


@pytest.fixture
def double(one, two, tmp_path):
    """Both as AI-Toolkit writes them into one file."""
    tensors = {}
    for number, path in enumerate((one, two), 1):
        tensors |= {
            key.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
            for key, tensor in load_file(path).items()
        }
    save_file(tensors, tmp_path / "double.safetensors")
    return tmp_path / "double.safetensors"


def test_a_file_of_two_loras_is_split(one, two, double, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert main(["split", str(double), "--out", str(tmp_path / "out")]) == 0
    assert "double_high_noise.safetensors: 20 modules, rank 4" in caplog.text
    for expert, source in (("high", one), ("low", two)):
        made = read_lora(tmp_path / "out" / f"double_{expert}_noise.safetensors")
        assert all(torch.equal(module.up, read_lora(source).modules[path].up) for path, module in made.modules.items())
    arguments = ["--name", "k", "--key-style", "kohya", "--precision", "bf16"]
    assert main(["split", str(double), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert read_lora(tmp_path / "out" / "k_low_noise.safetensors").style == "kohya"
    assert main(["split", str(one), "--out", str(tmp_path / "out")]) == 1
    assert "nothing to split" in caplog.text


@pytest.mark.parametrize("command", ["change FILE", "merge FILE FILE", "merge --high FILE", "fold FILE --model BASE"])
def test_other_commands_say_how_to_split(double, tmp_path, caplog, command):
    base = write_model(tmp_path / "wan_low_noise.safetensors", SIZE)
    out = tmp_path / ("out.safetensors" if command.startswith("fold") else "out")
    words = [{"FILE": str(double), "BASE": str(base)}.get(word, word) for word in command.split()]
    assert main([*words, "--out", str(out)]) == 1
    assert "split it into a file for each. `wantrain split FILE --out FOLDER` does that." in caplog.text


def test_what_a_file_of_two_loras_holds_is_told(double, two, tmp_path, capsys):
    assert main(["check-lora", str(double)]) == 1
    said = capsys.readouterr().out
    assert (
        said.index("holds two LoRAs")
        < said.index("`wantrain split FILE --out FOLDER`")
        < said.index("The high noise half")
    )
    assert said.count("Layers    20, LoRA of rank 4") == 2
    assert "Also" not in said
    empty = {key: tensor * 0 if "transformer_2" in key else tensor for key, tensor in load_file(double).items()}
    save_file(empty, tmp_path / "empty.safetensors")
    assert main(["check-lora", str(tmp_path / "empty.safetensors")]) == 1
    assert "The low noise half: The LoRA changes nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["merge", "absent=1", "absent"], "absent does not exist"),
        (["merge", "ONE"], "merging takes two or more"),
        (["merge", "ONE", "ONE", "--low", "ONE"], "in one way at a time"),
        (["merge", "ONE", "ONE", "--method", "ties"], "cuts the result to a rank"),
        (["change", "ONE", "--drop-blocks", "7"], "names 7, which the LoRA does not change"),
        (["change", "ONE", "--energy", "2"], "energy is the share to keep"),
        (["change", "ONE", "--name", "a/b"], "name is 'a/b'"),
    ],
)
def test_what_cannot_be_is_one_sentence(one, tmp_path, caplog, arguments, sentence):
    given = [str(one) if argument == "ONE" else argument for argument in arguments]
    assert main([*given, "--out", str(tmp_path / "out")]) == 1
    assert sentence in caplog.text
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("merge {one}=nan {two}", "the strength of one_low_noise.safetensors is nan: give a number from -100 to 100"),
        ("merge {one}=1e30 {two}", "is 1e+30: give a number"),
        ("merge {one}=0 {two}=0", "the strength is 0, which leaves nothing"),
        ("merge {one} {two} --method ties", "'ties' cuts the result to a rank: give rank"),
        ("merge {one} {two} --rank -3", "rank must be at least 1, got -3"),
        ("change {one} --strength nan", "the strength of the LoRA is nan"),
        ("change {one} --strength 0", "the strength is 0"),
        ("change {folder}", "is a folder: choose a LoRA file"),
        ("merge --high {folder}", "is a folder: choose a LoRA file"),
        ("average {folder}", "is no run folder"),
        ("average {folder}/nosuch {one}", "does not exist"),
        ("fold {one}=0 --model {base}", "the strength is 0"),
    ],
)
def test_what_makes_no_file_is_refused(one, two, tmp_path, caplog, arguments, sentence):
    base = write_model(tmp_path / "wan_low_noise.safetensors", SIZE)
    (tmp_path / "folder").mkdir()
    words = arguments.format(one=one, two=two, base=base, folder=tmp_path / "folder").split()
    out = tmp_path / ("x.safetensors" if words[0] in ("average", "fold") else "out")
    assert main([*words, "--out", str(out)]) == 1
    assert sentence in caplog.text
    assert not out.is_file()


def test_a_strength_that_is_no_number_is_told(one, capsys):
    with pytest.raises(SystemExit):
        main(["merge", f"{one}=strong", "--out", "x"])
    assert "is 'strong': write a number" in capsys.readouterr().err


def test_the_other_experts_lora_is_told(one, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert main(["merge", "--high", str(one), "--out", str(tmp_path / "out")]) == 0
        assert "used for the high-noise expert, but its name says low" in caplog.text
        caplog.clear()
        base = write_model(tmp_path / "wan_high_noise.safetensors", SIZE)
        assert main(["fold", str(one), "--model", str(base), "--out", str(tmp_path / "m.safetensors")]) == 0
    assert "used for the high-noise expert, but its name says low" in caplog.text


@pytest.mark.parametrize(
    ("name", "meant"),
    [("resize", "wantrain change FILE --rank"), ("chekpoints", "wantrain checkpoints"), ("xyzzy", "--help lists all")],
)
def test_an_unknown_command_is_answered_with_the_right_one(name, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name])
    assert caught.value.code == 2
    assert meant in capsys.readouterr().err


def test_a_full_disk_is_told_without_a_word_of_checkpoints(one, small_disk, caplog):
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(2**20 - 8_000))
    assert main(["merge", "--low", str(one), "--out", str(small_disk)]) == 1
    assert f"The disk with {small_disk} is full" in caplog.text
    assert "checkpoint" not in caplog.text
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("name", ["adapter.safetensors", "average.safetensors"])
def test_the_folder_of_a_checkpoint_is_its_lora(one, tmp_path, name):
    folder = tmp_path / "run=1" / "step-00000250"
    folder.mkdir(parents=True)
    if name == "average.safetensors":
        write_random(folder / "adapter.safetensors", SIZE, 2, rank=3)
    one.rename(folder / name)
    out = ["--out", str(tmp_path / "out")]
    assert main(["change", str(folder), "--name", "kept", *out]) == 0
    assert main(["merge", f"{folder}=0.5", str(folder), "--name", "sum", *out]) == 0
    assert main(["merge", "--single", str(folder), "--name", "shipped", *out]) == 0
    ranks = {path.stem: read_lora(path).ranks for path in (tmp_path / "out").iterdir()}
    assert ranks == {"kept": (4,), "sum": (8,), "shipped": (4,)}
    assert main(["check-lora", str(folder)]) == 0
