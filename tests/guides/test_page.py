"""The data chapters of the guides on the page: their files dropped on the canvas, and the data part of the workflow run."""

import shutil

import pytest
from wan_train.tests.guides.material import draw_s0, draw_s1, draw_s2, s0_files, s1_files, s2_files
from wan_train.tests.host.graphs import node
from wan_train.tests.host.runs import succeeded
from wan_train.tests.host.test_import import post
from wan_train.tools.workflow import ui_to_api

DATA = ("DatasetFromFolder", "JoinDatasets", "CacheLatents", "CacheT5")


def drop(host, name, draw, files):
    """The data nodes of the workflow that the page opens for the files, over the dataset in ComfyUI's input folder."""
    folder = host.base / "input" / name
    draw(folder)
    texts = files(folder.as_posix())
    status, answer = post(host, {"files": [{"name": name, "text": text} for name, text in texts.items()]})
    assert status == 200, answer
    prompt = ui_to_api(answer["workflow"], host.object_info())
    prompt = {key: value for key, value in prompt.items() if value["class_type"] in DATA}
    prompt["vae"] = node("VAELoader", vae_name="wan_mini_vae.safetensors")
    prompt["clip"] = node("CLIPLoader", clip_name="wan_mini_umt5.safetensors", type="wan")
    for key, value in tuple(prompt.items()):
        if value["class_type"] == "CacheLatents":
            value["inputs"]["vae"] = ["vae", 0]
        elif value["class_type"] == "CacheT5":
            value["inputs"]["clip"] = ["clip", 0]
        else:
            continue
        prompt[f"out {key}"] = node("PreviewAny", source=[key, 0])
    return prompt, folder


def reports(host, prompt):
    """The reports of the nodes, by class."""
    entry = host.run(prompt)
    assert succeeded(entry)
    kinds = {key: value["class_type"] for key, value in prompt.items()}
    return {kinds[key]: value["text"][0] for key, value in entry["outputs"].items() if kinds[key] in DATA}


@pytest.mark.grid(2, "the guide of s0")
def test_s0_pictures_of_960(host):
    prompt, folder = drop(host, "s0", draw_s0, s0_files)
    found = reports(host, prompt)
    assert found["DatasetFromFolder"].startswith("0 clips, 2 images: 2 samples an epoch")
    assert "960x960x1 (1)" in found["DatasetFromFolder"]
    assert found["CacheLatents"].startswith("2 samples in the cache")
    assert found["CacheT5"].startswith("3 captions in the cache")
    shutil.rmtree(folder)


@pytest.mark.grid(2, "the guide of s1")
def test_s1_clips_of_33_frames(host):
    prompt, folder = drop(host, "s1", draw_s1, s1_files)
    (data,) = (value["inputs"] for value in prompt.values() if value["class_type"] == "DatasetFromFolder")
    assert (data["folder"], data["trigger_word"], data["num_frames"]) == ("input/s1", "zxqperson", 33)
    found = reports(host, prompt)
    assert found["DatasetFromFolder"].splitlines()[0].startswith("3 clips, 0 images: 3 samples an epoch")
    assert "64x64x33 (3)" in found["DatasetFromFolder"]
    assert found["CacheLatents"].startswith("3 samples in the cache")
    assert found["CacheT5"].startswith("4 captions in the cache")
    shutil.rmtree(folder)


@pytest.mark.grid(2, "the guide of s2")
def test_s2_clips_of_75_frames(host):
    prompt, folder = drop(host, "s2", draw_s2, s2_files)
    (key,) = (key for key, value in prompt.items() if value["class_type"] == "DatasetFromFolder")
    only = {key: prompt[key], "clip": prompt["clip"]}  # 73 frames of 480x480 take minutes on a CPU
    only["text"] = node("CacheT5", dataset=[key, 0], clip=["clip", 0])
    only["out"] = node("PreviewAny", source=["text", 0])
    found = reports(host, only)
    assert found["DatasetFromFolder"].startswith("1 clip, 0 images: 1 sample an epoch")
    assert "480x480x73 (1)" in found["DatasetFromFolder"]
    assert "boat.mp4: skipped" in found["DatasetFromFolder"]
    assert found["CacheT5"].startswith("2 captions in the cache")
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _needs_yaml():
    pytest.importorskip("yaml")
