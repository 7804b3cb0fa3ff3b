"""Caption Dataset on the real host: by the host's own vision-language model, and by one in a folder."""

import shutil

import pytest
from wan_train.tests.core.captioning.tiny_model import write_tiny_model
from wan_train.tests.host.graphs import DATASET, node
from wan_train.tests.host.runs import succeeded
from wan_train.tests.host.test_bad_input import check, failure
from wan_train.tests.host.test_inputs import refused

CAPTIONS = {
    "kind": "motion",
    "must_say": "orbit 180 degrees",
    "question": "",
    "num_frames": 3,
    "picture_size": 64,
    "max_tokens": 8,
    "batch_size": 1,
    "redo": False,
    "caption_extension": ".txt",
}


@pytest.fixture
def folder(host):
    """The shapes without their captions, but for one that a person wrote."""
    path = host.base / "input" / "uncaptioned"
    shutil.copytree(host.base / "input" / "shapes", path)
    for text in sorted(path.glob("*.txt"))[1:]:
        text.unlink()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def model_folder(host):
    return write_tiny_model(host.base / "models" / "LLM" / "tiny_vl").name


def prompt(given, **changes):
    """Captions, then the dataset that reads them, by a wire."""
    captions = node("CaptionDataset", **{"folder": "input/uncaptioned", **CAPTIONS, **given, **changes})
    data = node("DatasetFromFolder", **{**DATASET, "folder": ["captions", 0]})
    return {
        "captions": captions,
        "data": data,
        "clip": node("CLIPLoader", clip_name="wan_mini_umt5.safetensors", type="wan"),
        "text": node("CacheT5", dataset=["data", 0], clip=["clip", 0]),
        "out": node("PreviewAny", source=["text", 0]),
        "seeing": node("TinyVisionLanguage"),
    }


def texts_of(folder):
    return {path.name: path.read_text("utf-8") for path in folder.glob("*.txt")}


@pytest.mark.parametrize("kind", ["clip", "folder"])
def test_captions_are_written_and_then_read(host, folder, model_folder, kind):
    ((own, words),) = texts_of(folder).items()
    given = {"clip": ["seeing", 0]} if kind == "clip" else {"model_folder": model_folder}
    entry = host.run(prompt(given))
    assert succeeded(entry)
    texts = texts_of(folder)
    assert len(texts) == 3
    assert texts.pop(own) == words
    assert all(text.startswith("orbit 180 degrees, ") for text in texts.values())
    report = entry["outputs"]["captions"]["text"][0].splitlines()
    assert report[0] == "2 captions written, 1 kept as they are"
    assert sorted(report[1:]) == sorted(f"{name}: {text}" for name, text in texts.items())
    assert entry["outputs"]["data"]["text"][0].startswith("2 clips, 1 image: 3 samples")
    assert entry["outputs"]["text"]["text"][0].startswith("4 captions")  # these three, and the empty one
    again = host.run(prompt(given, redo=True, must_say="pan left"))
    assert again["outputs"]["captions"]["text"][0].startswith("2 captions written, 1 kept")
    changed = texts_of(folder)
    assert changed.pop(own) == words
    assert all(text.startswith("pan left, ") for text in changed.values())


def test_a_text_encoder_is_no_model_that_sees(host, folder):
    check(failure(host, prompt({"clip": ["clip", 0]})), "captions", "does not look at pictures")
    assert len(texts_of(folder)) == 1


def test_one_model_is_needed_and_no_more(host, folder, model_folder):
    check(failure(host, prompt({})), "captions", "none of them is given")
    check(failure(host, prompt({"clip": ["seeing", 0], "model_folder": model_folder})), "captions", "both are given")


def test_a_folder_that_is_no_model_is_refused_before_anything_runs(host, folder, model_folder):
    (host.base / "models" / "LLM" / "tiny_vl" / "empty").mkdir(exist_ok=True)
    check(refused(host, prompt({"model_folder": f"{model_folder}/empty"})), "captions", "config.json")
    check(refused(host, prompt({"model_folder": "../checkpoints"})), "captions", "model_folder")
