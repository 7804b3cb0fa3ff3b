"""Bad input on the real host: refused before a process is started, on the right node, in one sentence, and nothing is lost."""

import contextlib
import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.locks import FileLock
from wan_train.tests.host.graphs import changed, data_graph, node, one_stage
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tools.miniature import T2V, DiTSize, TextSize, dit_metadata, umt5, wan_dit
from wan_train.tools.server import PromptRefusedError
from wan_train.tools.shapes import draw_dataset

CACHE = {"latents": node("PreviewAny", source=["latents", 0])}


@pytest.fixture(scope="module")
def warm(host):
    """Encoders loaded and imports done, as after any first use."""
    assert succeeded(host.run(caching()))
    return host


def caching(**dataset):
    """Dataset and both caches, without training."""
    prompt = data_graph(**dataset)
    prompt["out_latents"] = node("PreviewAny", source=["latents", 0])
    prompt["out_text"] = node("PreviewAny", source=["text", 0])
    return prompt


def failure(host, prompt):
    """(node id, message, whether a training process was started) of a prompt that fails while it runs."""
    before = logs(host)
    entry = host.run(prompt)
    messages = dict(entry["status"]["messages"])
    assert "execution_error" in messages, messages.keys()
    error = messages["execution_error"]
    assert error["exception_type"].startswith("WanTrain."), error["exception_type"]
    return error["node_id"], error["exception_message"].strip(), logs(host) != before


def logs(host):
    """What training processes have printed, each into the log of its run."""
    logs = (host.base / "output" / "wan_train" / "runs").glob("*/worker.log")
    return {path: path.stat().st_size for path in logs}


def refusal(host, prompt):
    """(node id, message) of a prompt that the host's check refuses before anything runs."""
    with pytest.raises(PromptRefusedError) as caught:
        host.queue(prompt)
    ((node_id, found),) = [(k, v) for k, v in caught.value.answer["node_errors"].items() if v["errors"]]
    return node_id, " ".join(f"{e['message']} {e['details']}" for e in found["errors"])


def check(found, node_id, *words):
    assert found[0] == node_id, found
    for word in words:
        assert word in found[1], found[1]
    assert "\n" not in found[1]
    if len(found) == 3:
        assert not found[2], found


@pytest.fixture
def folder(host, request):
    """A new dataset folder of two good clips; its name in the graph, and its path."""
    name = request.node.name[:40].replace("[", "_").replace("]", "")
    path = host.base / "input" / name
    draw_dataset(path, clips=2, images=0, size=64, frames=9, seed=5)
    yield f"input/{name}", path
    shutil.rmtree(path)


def test_an_empty_folder(warm, folder):
    name, path = folder
    for file in path.iterdir():
        file.unlink()
    check(failure(warm, caching(folder=name)), "data", "no images or clips")


def test_no_captions(warm, folder):
    name, path = folder
    for file in path.glob("*.txt"):
        file.unlink()
    check(failure(warm, caching(folder=name, trigger_word="")), "data", "caption")


def truncate(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_a_truncated_clip_is_skipped_and_named_or_refused(warm, folder):
    name, path = folder
    victim = sorted(path.glob("*.mp4"))[0]
    truncate(victim)
    check(failure(warm, caching(folder=name, bad_files="refuse")), "data", victim.name)
    entry = warm.run(caching(folder=name, bad_files="skip"))
    assert succeeded(entry)
    report = entry["outputs"]["data"]["text"][0]
    assert report.startswith("1 clip,")
    assert f"{victim.name}: dropped" in report or f"{victim.name}: skipped" in report


def test_a_clip_that_is_too_short(warm, folder):
    name, _ = folder
    check(failure(warm, caching(folder=name, num_frames=13, short_clips="refuse")), "data", "clip_00.mp4", "13")
    check(failure(warm, caching(folder=name, num_frames=13, short_clips="skip")), "data")
    entry = warm.run(caching(folder=name, num_frames=13, short_clips="shorten"))
    told = entry["outputs"]["data"]["text"][0]
    assert "2 files: shortened" in told
    assert "clip_00.mp4" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "input/nothing_here"}, ("input/nothing_here", "not found")),
        ({"folder": "input/../models"}, ("leads outside",)),
        ({"folder": "input/../../../etc"}, ("leads outside",)),
        ({"folder": "/etc"}, ("not found",)),
        ({"folder": "datasets\\..\\input"}, ("leads outside",)),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, dict) else None,
)
def test_folders_are_checked_before_anything_runs_and_refused_once(warm, change, words):
    found = refusal(warm, caching(**change))
    check(found, "data", *words)
    assert found[1].count("the dataset folder") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_frames": 10}, ("num_frames is 10", "4n+1", "9 or 13")),
        ({"width": 100}, ("width is 100", "multiple of 16", "96 or 112")),
        ({"more_sizes": "100"}, ("100", "multiple of 16")),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, dict) else None,
)
def test_sizes_and_frames_are_checked_before_anything_is_cached(warm, change, words):
    check(failure(warm, caching(**change)), "data", *words)


def test_a_link_out_of_the_roots_is_refused(warm):
    link = warm.base / "input" / "link"
    try:
        link.symlink_to("/etc", target_is_directory=True)
    except OSError:
        pytest.skip("links are not permitted here")
    check(refusal(warm, caching(folder="input/link")), "data", "leads outside")


def wrong_model(kind, path, base):
    if kind == "vae":
        shutil.copy(base / "models" / "vae" / "wan_mini_vae.safetensors", path)
    elif kind == "text encoder":
        shutil.copy(base / "models" / "text_encoders" / "wan_mini_umt5.safetensors", path)
    elif kind == "lora":
        name = "diffusion_model.blocks.0.self_attn.q"
        save_file({f"{name}.lora_A.weight": torch.zeros(4, 8), f"{name}.lora_B.weight": torch.zeros(8, 4)}, path)
    elif kind == "vace":
        state = {**wan_dit(T2V, seed=0), "vace_patch_embedding.weight": torch.zeros(96, 96, 1, 2, 2)}
        save_file(state, path, metadata=dit_metadata(T2V))
    elif kind == "flux":
        save_file(
            {
                "double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 8),
                "single_blocks.0.linear1.weight": torch.zeros(8, 8),
            },
            path,
        )
    else:
        shutil.copy(base / "models" / "diffusion_models" / "wan_mini_high_noise.safetensors", path)
        truncate(path, 0.7)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("vae", ("VAE", "diffusion_models")),
        ("text encoder", ("text encoder",)),
        ("lora", ("LoRA",)),
        ("vace", ("VACE", "control videos")),
        ("flux", ("Flux",)),
        ("truncated", ("download it again",)),
    ],
)
def test_the_wrong_model_file_is_named_for_what_it_is(warm, kind, words):
    path = warm.base / "models" / "diffusion_models" / "wrong.safetensors"
    wrong_model(kind, path, warm.base)
    try:
        prompt = changed(one_stage(), "high_dit", model_name="wrong.safetensors")
        check(refusal(warm, prompt), "high_dit", "wrong.safetensors", *words)
    finally:
        path.unlink()


def test_a_vae_of_another_model(warm):
    prompt = changed(caching(), "vae", vae_name="pixel_space")
    check(failure(warm, prompt), "latents", "not a Wan VAE", "wan_2.1_vae")


def test_a_clip_of_another_model(warm):
    prompt = caching()
    del prompt["clip"]
    prompt["clip"] = node("WanLoadUMT5", name="wan_mini_umt5.safetensors")
    models = warm.base / "models" / "text_encoders"
    save_file({"shared.weight": torch.zeros(4, 4)}, models / "no_t5.safetensors")
    prompt["clip"]["inputs"]["name"] = "no_t5.safetensors"
    check(failure(warm, prompt), "clip", "no_t5.safetensors", "not a umT5")


def test_text_of_another_width(warm):
    models = warm.base / "models" / "text_encoders"
    save_file(umt5(TextSize(d_model=96)), models / "wide.safetensors")
    prompt = changed(one_stage(), "clip", name="wide.safetensors")
    assert succeeded(warm.run(changed(caching(), "clip", name="wide.safetensors")))
    check(failure(warm, prompt), "high_train", "width 96", "needs 64", "umT5")
    assert not [p for p in run_folders(warm) if (p / "worker.log").exists() and p.name.startswith("wide")]


def test_a_model_of_another_text_width(warm):
    size = DiTSize(text_dim=48)
    save_file(
        wan_dit(size), warm.base / "models" / "diffusion_models" / "narrow.safetensors", metadata=dit_metadata(size)
    )
    prompt = changed(one_stage(), "high_dit", model_name="narrow.safetensors")
    check(failure(warm, prompt), "high_train", "width 64", "narrow.safetensors needs 48")


@contextlib.contextmanager
def mounted(place, options):
    """A small or read-only file system over a folder, for as long as the block runs."""
    place.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_disk_is_full_while_caching(warm, folder):
    name, _ = folder
    with mounted(warm.base / "output" / "wan_train" / "cache" / "latents", "size=4k"):
        found = failure(warm, caching(folder=name))
    check((*found[:2],), "latents", "is full", "kept")
    assert succeeded(warm.run(caching(folder=name)))


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_at_the_start(warm):
    runs = warm.base / "output" / "wan_train" / "runs"
    before = run_folders(warm)
    with mounted(runs, "size=400k"):
        found = failure(warm, one_stage(lora_name="full", seed=31, steps=30, checkpoint_every=1, keep_last=30))
        check((*found[:2],), "high_train", "30 checkpoints", "are free", "make room")
        assert run_folders(warm) == set()  # the node says it, and starts nothing
    assert run_folders(warm) == before


@pytest.mark.parametrize("place", ["output/wan_train/runs", "models/loras"])
def test_a_read_only_output_folder(warm, place):
    prompt = one_stage(lora_name="readonly", seed=32, steps=1)
    prompt["pair"] = node(
        "MergeStages", high=["high_train", 0], name="readonly", precision="bf16", key_style="comfyui", rank=0,
        author="", description="", second_strength=1.0,
    )  # fmt: skip
    if place == "models/loras":
        assert succeeded(warm.run(one_stage(lora_name="readonly", seed=32, steps=1)))
    with mounted(warm.base / place, "ro,size=4k"):
        found = failure(warm, prompt)
    check(found, "pair" if place == "models/loras" else "high_train", "cannot be written", "another folder")


def test_two_runs_on_one_folder(warm):
    prompt = one_stage(lora_name="busy", seed=33, steps=2)
    before = run_folders(warm)
    assert succeeded(warm.run(prompt))
    (folder,) = run_folders(warm) - before
    (folder / "result.json").unlink()
    lock = FileLock(folder / ".lock")
    assert lock.acquire()
    try:
        check(
            failure(warm, changed(prompt, "high_train", keep_last=2)), "high_train", "by another process", str(folder)
        )
    finally:
        lock.release()
    assert succeeded(warm.run(changed(prompt, "high_train", keep_last=1)))


def test_a_job_of_a_newer_version(warm):
    prompt = one_stage(lora_name="newer", seed=34, steps=2)
    before = run_folders(warm)
    assert succeeded(warm.run(prompt))
    (folder,) = run_folders(warm) - before
    (folder / "result.json").unlink()
    job = json.loads((folder / "job.json").read_text())
    text = json.dumps({**job, "schema": 99, "something": "new"})
    (folder / "job.json").write_text(text)
    check(
        failure(warm, changed(prompt, "high_train", keep_last=2)), "high_train", "schema 99", "update ComfyUI-WanTrain"
    )
    assert (folder / "job.json").read_text() == text


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x\\y", ".hidden", "name."])
def test_names_that_are_no_file_names(warm, name):
    check(refusal(warm, one_stage(lora_name=name)), "high_train", "lora_name")


def test_a_pair_the_wrong_way_round(warm):
    prompt = one_stage("low", lora_name="swapped", seed=35, steps=1)
    prompt["pair"] = node(
        "MergeStages", high=["low_train", 0], name="swapped", precision="bf16", key_style="comfyui", rank=0,
        author="", description="", second_strength=1.0,
    )  # fmt: skip
    assert succeeded(warm.run(one_stage("low", lora_name="swapped", seed=35, steps=1)))
    check(failure(warm, prompt), "pair", "trained for the low noise stage", "swap")


def test_a_crash_of_the_trainer_leaves_the_host_alive(warm):
    """A latent file that vanished between caching and training is named, and the host goes on."""
    prompt = one_stage(lora_name="vanish", seed=36, steps=2)
    entry = warm.run(caching())
    assert succeeded(entry)
    latents = warm.base / "output" / "wan_train" / "cache" / "latents"
    aside = warm.base / "aside_latents"
    latents.rename(aside)
    try:
        again = warm.run(prompt)  # the node sees that its files are gone, and encodes them anew
        assert succeeded(again)
    finally:
        shutil.rmtree(latents, ignore_errors=True)
        aside.rename(latents)
