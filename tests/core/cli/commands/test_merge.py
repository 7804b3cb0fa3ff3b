"""`wantrain merge` writes the bytes that the node Merge Stages writes."""

import logging

import pytest
from wan_train.core.adapters.formats import read_lora
from wan_train.core.cli.main import main
from wan_train.tests.core.adapters.helpers import write_random
from wan_train.tools.miniature import DiTSize

SIZE = DiTSize(num_layers=1)


@pytest.fixture
def loras(tmp_path):
    """Four LoRA files by name."""
    names = ("one_high_noise", "one_low_noise", "two_high_noise", "two_low_noise")
    paths = {name: tmp_path / f"{name}.safetensors" for name in names}
    for seed, path in enumerate(paths.values()):
        write_random(path, SIZE, seed, rank=4, **{"modelspec.architecture": "wan2.2-t2v-a14b/lora"})
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def node_folder(comfy, tmp_path):
    """The host's loras folder, empty, for the node in this process."""
    import folder_paths

    folder = tmp_path / "node"
    folder.mkdir()
    known = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], known[1])
    yield folder
    folder_paths.folder_names_and_paths["loras"] = known


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_are_the_nodes(loras, node_folder, tmp_path):
    from wan_train.nodes.merge_nodes import MergeStages
    from wan_train.nodes.sockets import LoraHandle

    def handle(name):
        return LoraHandle(tmp_path / f"{name}.safetensors", "high" if "high" in name else "low", name)

    one = {"high": handle("one_high_noise"), "low": handle("one_low_noise")}
    two = {"second_high": handle("two_high_noise"), "second_low": handle("two_low_noise")}
    text = {"author": "someone", "description": "a cat"}
    MergeStages.execute("cat", **one, precision="fp16", key_style="kohya", rank=3, second_strength=1.0, **text)
    MergeStages.execute("sum", **one, **two, precision="bf16", key_style="comfyui", rank=0, second_strength=0.5, **text)
    pair = ["--high", loras["one_high_noise"], "--low", loras["one_low_noise"]]
    second = [
        "--second-high",
        loras["two_high_noise"],
        "--second-low",
        loras["two_low_noise"],
        "--second-strength",
        "0.5",
    ]
    common = ["merge", *pair, "--out", str(tmp_path / "out"), "--author", "someone", "--description", "a cat"]
    assert main([*common, "--name", "cat", "--precision", "fp16", "--key-style", "kohya", "--rank", "3"]) == 0
    assert main([*common, "--name", "sum", *second]) == 0
    assert len(contents(node_folder)) == 4
    assert contents(tmp_path / "out") == contents(node_folder)


def test_a_single_models_file_has_the_plain_name(loras, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert (
            main(["merge", "--single", loras["one_high_noise"], "--out", str(tmp_path / "out"), "--name", "cat"]) == 0
        )
    assert read_lora(tmp_path / "out" / "cat.safetensors").ranks == (4,)
    assert "cat.safetensors: 10 modules, rank 4" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no LoRA to write"),
        (["--second-low", "one_low_noise"], "--second-low is given without --low"),
        (["--single", "one_high_noise", "--low", "one_low_noise"], "don't make a pair"),
        (["--single", "one_high_noise", "--name", "a/b"], "name is 'a/b'"),
        (["--single", "absent"], "absent does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence(loras, tmp_path, caplog, arguments, sentence):
    arguments = [loras.get(argument, argument) for argument in arguments]
    assert main(["merge", "--out", str(tmp_path / "out"), *arguments]) == 1
    assert sentence in caplog.text
    assert not list((tmp_path / "out").glob("*.safetensors"))
