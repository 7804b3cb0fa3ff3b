"""Image-to-video on the real host: known frames cached, an I2V expert trained, a preview from a start image."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.settings.job import job_from_json
from wan_train.tests.host.graphs import changed, node, one_stage
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tools.miniature import I2V_22, dit_metadata, wan_dit

MODEL = "wan_mini_i2v_high_noise.safetensors"


@pytest.fixture(scope="module")
def i2v(host):
    """The host with an image-to-video model and a start image."""
    save_file(wan_dit(I2V_22, seed=3), host.base / "models" / "diffusion_models" / MODEL, metadata=dit_metadata(I2V_22))
    Image.new("RGB", (64, 64), (200, 40, 40)).save(host.base / "input" / "start.png")
    return host


def graph(condition_on="first frame"):
    prompt = one_stage(lora_name="from_image", steps=2, seed=31, boundary=0.0)
    prompt = changed(changed(prompt, "high_dit", model_name=MODEL), "data", slide_stride=18)
    return changed(prompt, "latents", condition_on=condition_on)


def preview(**images):
    return {
        "pair": node(
            "MergeStages", high=["high_train", 0], name="from_image", precision="bf16", key_style="comfyui", rank=0,
            author="", description="", second_strength=1.0,
        ),
        "model": node("UNETLoader", unet_name=MODEL, weight_dtype="default"),
        "start": node("LoadImage", image="start.png"),
        "preview": node(
            "PreviewLoRA", pair=["pair", 0], high=["model", 0], clip=["clip", 0], vae=["vae", 0], prompt="shp",
            negative_prompt="", width=64, height=64, num_frames=9, steps=2, cfg=1.0, seed=3, shift=0.0, boundary=0.0,
            sampler="euler", scheduler="simple", strength=1.0, compare=False, fps=16.0, **images,
        ),
        "save": node("SaveImage", images=["preview", 0], filename_prefix="from_image"),
    }  # fmt: skip


def error_of(entry):
    (message,) = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
    return message["node_id"], message["exception_message"]


def test_an_i2v_expert_is_trained_on_given_frames_and_previewed_from_an_image(i2v):
    before = run_folders(i2v)
    entry = i2v.run({**graph(), **preview(start_image=["start", 0])})
    assert succeeded(entry)
    (folder,) = run_folders(i2v) - before
    job = job_from_json((folder / "job.json").read_text(encoding="utf-8"))
    assert job.data.conditioning == "first frame"
    assert all(sample.known_path for sample in job.data.samples)
    assert all(sample.shape[1] > 1 for sample in job.data.samples)  # the picture is left out
    assert job.timesteps.sigma_min == 0.9  # the official boundary of I2V-A14B
    assert job.model.label.startswith("wan2.2-i2v")
    lora = read_lora(i2v.base / "models" / "loras" / "from_image_high_noise.safetensors")
    assert len(lora.modules) == 30
    assert lora.metadata["modelspec.timestep_range"] == "900,1000"
    assert len(entry["outputs"]["save"]["images"]) == 9


def test_a_last_frame_can_be_given_too(i2v):
    prompt = preview(start_image=["start", 0], end_image=["start", 0])
    prompt["preview"]["inputs"]["seed"] = 4
    assert succeeded(i2v.run({**graph(), **prompt}))  # the training returns at once


def test_a_picture_of_the_users_is_given_as_first_frame(i2v):
    folder = i2v.base / "input" / "with_starts"
    shutil.copytree(i2v.base / "input" / "shapes", folder)
    (folder / "starts").mkdir()
    for clip in folder.glob("*.mp4"):
        Image.new("RGB", (64, 64), (200, 40, 40)).save(folder / "starts" / f"{clip.stem}.png")
    before = run_folders(i2v)
    prompt = changed(changed(graph(), "data", folder="input/with_starts", first_frames="starts"), "high_train", steps=1)
    assert succeeded(i2v.run(prompt))
    (run,) = run_folders(i2v) - before
    given = job_from_json((run / "job.json").read_text(encoding="utf-8")).data.samples
    known = [load_file(sample.known_path)["latents"] for sample in given]
    assert len(known) == 2
    assert torch.equal(known[0], known[1])  # of two clips: the same picture, and grey
    none = changed(prompt, "latents", condition_on="none")
    node_id, sentence = error_of(i2v.run(none))
    assert node_id == "latents"
    assert "names pictures for the first frame" in sentence
    assert "set condition_on of Cache Latents" in sentence


def test_gguf_files_are_offered(i2v):
    path = i2v.base / "models" / "diffusion_models" / "some.gguf"
    path.write_bytes(b"GGUF")
    try:
        offered = i2v.object_info()["LoadWanDiT"]["input"]["required"]["model_name"]
        assert "some.gguf" in str(offered)
    finally:
        path.unlink()


def test_what_does_not_fit_is_said_on_the_right_node(i2v):
    node_id, message = error_of(i2v.run(graph("none")))
    assert node_id == "high_train"
    assert "condition_on" in message
    assert "image-to-video" in message
    text_model = changed(graph(), "high_dit", model_name="wan_mini_high_noise.safetensors")
    node_id, message = error_of(i2v.run(text_model))
    assert node_id == "high_train"
    assert "text-to-video" in message
    node_id, message = error_of(i2v.run({**graph(), **preview()}))
    assert node_id == "preview"
    assert "start_image" in message
