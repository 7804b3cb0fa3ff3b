"""Whatever a program sends in a prompt: each wrong value is one sentence on the right node, with the input's name."""

import json
import shutil
import urllib.error
from pathlib import Path

import pytest
from safetensors.torch import save_file
from wan_train.tests.host.graphs import changed, data_graph, node, one_stage
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tests.host.test_bad_input import caching, check, failure, refusal
from wan_train.tools.miniature import T2V, dit_metadata, wan_dit
from wan_train.tools.shapes import draw_dataset

MERGE = {
    "precision": "bf16",
    "key_style": "comfyui",
    "rank": 0,
    "author": "",
    "description": "",
    "second_strength": 1.0,
}
PREVIEW = {
    "prompt": "x", "negative_prompt": "", "width": 64, "height": 64, "num_frames": 5, "steps": 1, "cfg": 1.0, "seed": 1,
    "shift": 0.0, "boundary": 0.0, "sampler": "euler", "scheduler": "simple", "strength": 1.0, "compare": False, "fps": 16.0,
}  # fmt: skip


def refused(host, prompt):
    """(node id, message) of the one node that the host's check refuses, whether or not the others are run."""
    try:
        answer = host.server.request("/prompt", {"prompt": prompt, "client_id": host.server.client_id})
        host.wait(answer["prompt_id"])
    except urllib.error.HTTPError as error:
        answer = json.loads(error.read())
    ((node_id, found),) = [(k, v) for k, v in answer["node_errors"].items() if v["errors"]]
    return node_id, " ".join(f"{e['message']} {e['details']}" for e in found["errors"])


def graph():
    """One stage, merged and previewed, so small that a wrong value is reached at once."""
    prompt = one_stage(lora_name="wired", seed=51, steps=1)
    prompt["pair"] = node("MergeStages", high=["high_train", 0], name="wired", **MERGE)
    prompt["model"] = node("UNETLoader", unet_name="wan_mini_high_noise.safetensors", weight_dtype="default")
    prompt["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], high=["model", 0], clip=["clip", 0], vae=["vae", 0], **PREVIEW
    )
    prompt["save"] = node("PreviewImage", images=["preview", 0])
    return prompt


WIRES = [
    ("latents", "dataset"), ("latents", "vae"), ("latents", "clip_vision"), ("text", "dataset"), ("text", "clip"),
    ("high_train", "dit"), ("high_train", "latents"), ("high_train", "text"), ("high_train", "vae"), ("pair", "high"),
    ("pair", "second_high"), ("preview", "pair"), ("preview", "high"), ("preview", "low"), ("preview", "clip"),
    ("preview", "vae"), ("preview", "start_image"), ("preview", "clip_vision"),
]  # fmt: skip


@pytest.fixture(scope="module")
def warm(host):
    assert succeeded(host.run(graph()))
    return host


@pytest.mark.grid(6)
@pytest.mark.parametrize(("name", "wire"), WIRES)
def test_what_stands_on_a_wire(warm, name, wire):
    for value in ({"a": 1}, {"__value__": [1, 2]}, "text", 7):
        check(
            failure(warm, changed(graph(), name, **{wire: value}))[:2],
            name,
            f"{wire} must be connected to",
            "but it is",
        )


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("name", "wire", "other"),
    [
        ("latents", "vae", ["clip", 0]), ("text", "clip", ["vae", 0]), ("latents", "dataset", ["high_dit", 0]),
        ("high_train", "latents", ["text", 0]), ("preview", "pair", ["high_train", 0]), ("preview", "high", ["vae", 0]),
    ],
)  # fmt: skip
def test_a_wire_of_another_type_is_refused_by_the_host(warm, name, wire, other):
    check(refused(warm, changed(graph(), name, **{wire: other})), name, "mismatch", wire)


WIDGETS = [
    ("data", "width", "x"), ("data", "width", {"a": 1}), ("data", "width", 10**9), ("data", "width", -16), ("data", "fps", "x"),
    ("data", "num_frames", 10**30), ("data", "folder", {"a": 1}), ("data", "folder", 7),
    ("data", "folder", "input/" + "x" * 5000),
    ("data", "folder", "input/a\0b"), ("data", "frame_sampling", {"a": 1}), ("data", "held_out", 10**6),
    ("high_dit", "model_name", {"a": 1}), ("high_dit", "model_name", "../../x"), ("high_dit", "model_name", "/etc/passwd"),
    ("high_dit", "model_name", "x" * 5000), ("high_dit", "model_name", "a\0b"), ("high_dit", "precision", {"a": 1}),
    ("high_train", "seed", "x"), ("high_train", "seed", 10**400), ("high_train", "stage", ["a"]), ("high_train", "rank", 10**9),
    ("high_train", "lora_name", {"a": 1}), ("high_train", "lora_name", "x" * 5000), ("high_train", "lora_name", "NUL"),
    ("high_train", "lora_name", "con.x"), ("pair", "name", "COM1"), ("pair", "name", "猫" * 90), ("pair", "key_style", 3),
    ("preview", "width", {"a": 1}), ("preview", "width", 10**9), ("preview", "sampler", "none such"), ("clip", "name", "../x"),
]  # fmt: skip


@pytest.mark.grid(4)
@pytest.mark.parametrize(("name", "widget", "value"), WIDGETS, ids=lambda value: str(value)[:20])
def test_what_stands_in_a_widget_is_refused_before_anything_runs(warm, name, widget, value):
    found = refused(warm, changed(graph(), name, **{widget: value}))
    assert found[0] == name
    assert widget in found[1]
    assert "Traceback" not in found[1]
    assert len(found[1]) < 12_000  # the host repeats what it was given


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    ("name", "widget", "value", "words"),
    [
        ("high_train", "learning_rate", float("nan"), "nan, which is no number to work with"),
        ("data", "fps", float("nan"), "nan, which is no number"),
        ("pair", "second_strength", float("nan"), "nan, which is no number"),
        ("data", "caption_extension", "..", "ending of the caption files' names"),
        ("data", "caption_extension", "x" * 5000, "(5000 characters)"),
        ("data", "trigger_word", "\ud800", "half a character"),
        ("pair", "description", "\ud800", "half a character"),
        ("preview", "prompt", "\ud800", "half a character"),
        ("preview", "shift", float("nan"), "nan, which is no number"),
    ],
    ids=str,
)
def test_what_the_host_lets_pass(warm, name, widget, value, words):
    prompt = graph()
    prompt[name]["inputs"][widget] = value
    check(failure(warm, prompt)[:2], name, widget, words)


def test_a_size_may_come_over_a_wire(warm):
    prompt = changed(caching(), "data", width=["number", 0], height=["number", 0])
    prompt["number"] = node("PrimitiveInt", value=64)
    assert succeeded(warm.run(prompt))
    prompt["number"]["inputs"]["value"] = 8192
    check(failure(warm, prompt)[:2], "data", "width is 8192", "16 to 4096")


def test_a_run_may_be_named_over_a_wire(warm):
    prompt = changed(graph(), "high_train", lora_name=["word", 0])
    prompt["word"] = node("PrimitiveString", value="../../evil")
    check(failure(warm, prompt)[:2], "high_train", "lora_name is '../../evil'")
    prompt = changed(graph(), "pair", name=["word", 0])
    prompt["word"] = node("PrimitiveString", value="CON")
    check(failure(warm, prompt)[:2], "pair", "name is 'CON'", "device")


def link_to(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("links are not permitted here")


def listed(host, class_type, field):
    return host.object_info()[class_type]["input"]["required"][field][1]["options"]


@pytest.fixture
def disk(warm, tmp_path):
    """Another disk with models and clips; links to it are taken away at the end."""
    models = warm.base / "models"
    save_file(wan_dit(T2V, seed=77), tmp_path / "model.safetensors", metadata=dit_metadata(T2V))
    (tmp_path / "encoders").mkdir()
    shutil.copy(models / "text_encoders" / "wan_mini_umt5.safetensors", tmp_path / "encoders" / "umt5.safetensors")
    loras = warm.base / "models" / "loras"
    (tmp_path / "loras").mkdir()
    shutil.copy(loras / "wired_high_noise.safetensors", tmp_path / "loras" / "far_high_noise.safetensors")
    draw_dataset(tmp_path / "clips", clips=1, images=1, size=64, frames=9, seed=6)
    links = {
        models / "diffusion_models" / "linked.safetensors": tmp_path / "model.safetensors",
        models / "text_encoders" / "disk": tmp_path / "encoders",
        loras / "disk": tmp_path / "loras",
    }
    for place, target in links.items():
        link_to(place, target)
    yield tmp_path
    for place in links:
        place.unlink()


def test_models_on_another_disk_are_used_through_links(warm, disk):
    assert "linked.safetensors" in listed(warm, "LoadWanDiT", "model_name")
    prompt = changed(
        changed(graph(), "high_dit", model_name="linked.safetensors"), "clip", name="disk/umt5.safetensors"
    )
    prompt = {name: prompt[name] for name in ("data", "clip", "text", "high_dit")}
    prompt["lora"] = node("WanLoRAFromFile", lora_file="disk/far_high_noise.safetensors", stage="auto")
    prompt["pair"] = node("MergeStages", high=["lora", 0], name="far", **MERGE)
    for name in ("text", "high_dit"):
        prompt[f"out_{name}"] = node("PreviewAny", source=[name, 0])
    assert succeeded(warm.run(prompt))


def test_a_run_on_a_linked_model(warm, disk):
    before = run_folders(warm)
    prompt = changed(one_stage(lora_name="linked", seed=52, steps=1), "high_dit", model_name="linked.safetensors")
    assert succeeded(warm.run(prompt))
    (folder,) = run_folders(warm) - before
    assert json.loads((folder / "job.json").read_text())["model"]["path"].endswith("linked.safetensors")


def test_a_gguf_in_a_linked_folder_is_listed(warm, tmp_path):
    (tmp_path / "far.gguf").write_bytes(b"GGUF")
    place = warm.base / "models" / "diffusion_models" / "elsewhere"
    link_to(place, tmp_path)
    try:
        assert "elsewhere/far.gguf" in listed(warm, "LoadWanDiT", "model_name")
    finally:
        place.unlink()


def test_a_link_in_the_dataset_folders(warm, disk):
    """It leads to another dataset folder, or nowhere."""
    draw_dataset(warm.base / "input" / "real" / "inner", clips=1, images=1, size=64, frames=9, seed=7)
    inside, outside = warm.base / "input" / "inside", warm.base / "input" / "outside"
    link_to(inside, warm.base / "input" / "real")
    link_to(outside, disk / "clips")
    try:
        prompt = data_graph(folder="input/inside")
        prompt["out"] = node("PreviewAny", source=["data", 0])
        assert succeeded(warm.run({name: prompt[name] for name in ("data", "out")}))
        found = refusal(warm, caching(folder="input/outside"))
        check(found, "data", "leads outside the dataset folders", "WANTRAIN_DATASET_ROOTS")
        assert str(disk) not in found[1]
    finally:
        inside.unlink()
        outside.unlink()


def test_a_file_that_is_a_link_is_left_out_and_named(warm, disk):
    folder = warm.base / "input" / "with_a_link"
    draw_dataset(folder, clips=1, images=1, size=64, frames=9, seed=8)
    source = next((disk / "clips").glob("*.mp4"))
    link_to(folder / "far.mp4", source)
    prompt = data_graph(folder="input/with_a_link")
    prompt["out"] = node("PreviewAny", source=["data", 0])
    entry = warm.run({name: prompt[name] for name in ("data", "out")})
    assert succeeded(entry)
    assert "far.mp4: skipped: a link that leads outside" in entry["outputs"]["data"]["text"][0]


def test_values_of_earlier_versions_are_taken_and_others_refused(warm):
    old = {"checkpointing": True, "stream_from": "pinned", "split_blocks": False}
    prompt = changed(one_stage(lora_name="earlier", seed=52, steps=1), "high_dit", **old)
    assert succeeded(warm.run(prompt))
    name, words = refused(warm, changed(prompt, "high_dit", stream_from="somewhere"))
    assert name == "high_dit"
    assert words.count("somewhere") == 1


def test_files_of_a_training_are_found_from_any_folder(comfy, tmp_path, monkeypatch):
    """Its process works in the run's folder; and LoRAs are named as the loaders name them."""
    from wan_train.nodes import train_nodes
    from wan_train.nodes.host import folders

    monkeypatch.setattr(folders, "lora_path", lambda name, _field: tmp_path / name)
    names = ("preview_lora", "preview_other_lora", "crepa_encoder", "crepa_vae")
    given = {name: f'"{name}.safetensors"' for name in names}
    dit = train_nodes.DitHandle(info=None, settings={})  # type: ignore[arg-type]
    made = train_nodes.stage_settings(dit, {"preview_every": 2, **given})
    assert made.previews.lora == str(tmp_path / "preview_lora.safetensors")
    assert made.previews.other_lora == str(tmp_path / "preview_other_lora.safetensors")
    assert made.crepa.encoder == str(Path.cwd() / "crepa_encoder.safetensors")
    assert made.crepa.vae == str(Path.cwd() / "crepa_vae.safetensors")
    without = train_nodes.stage_settings(dit, {"preview_every": 0, "preview_lora": "gone"})
    assert without.previews.lora == "gone"  # of no use, and no reason to refuse the training
    assert train_nodes.stage_settings(dit, {}).crepa.encoder == ""
