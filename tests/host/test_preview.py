"""The preview is what the user's own graph would make, and captions reach the encoder as they are written."""

import shutil

import av
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from wan_train.core.generate.film import title_strip
from wan_train.tests.host.graphs import changed, data_graph, node, two_stages
from wan_train.tests.host.runs import succeeded
from wan_train.tools.shapes import draw_dataset

SHIFT, STEPS, SEED = 5.0, 8, 11


@pytest.fixture(scope="module")
def pair(host):
    """A trained pair in the loras folder."""
    prompt = two_stages(lora_name="shown", steps=8, seed=41, learning_rate=2e-2)
    prompt["pair"] = node(
        "MergeStages", high=["high_train", 0], low=["low_train", 0], name="shown", precision="fp32",
        key_style="comfyui", rank=0, author="", description="", second_strength=1.0,
    )  # fmt: skip
    assert succeeded(host.run(prompt))
    return prompt


def frames(host, entry, node_id):
    paths = [host.base / "output" / i["subfolder"] / i["filename"] for i in entry["outputs"][node_id]["images"]]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def own_graph(lora, *, steps=STEPS, cfg=2.0, switch=4):
    """What a user builds by hand: shift, LoRA, two KSamplerAdvanced, decode."""
    graph = {
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="shp a red circle"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="blurry"),
        "empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=9, batch_size=1),
    }
    for stage in ("high", "low"):
        graph[f"{stage}_shifted"] = node("ModelSamplingSD3", model=[f"{stage}_model", 0], shift=SHIFT)
        if lora:
            name = f"shown_{stage}_noise.safetensors"
            graph[f"{stage}_used"] = node(
                "LoraLoaderModelOnly", model=[f"{stage}_shifted", 0], lora_name=name, strength_model=1.0
            )
    used = "used" if lora else "shifted"
    # shift 5, 8 steps, "simple": sigma falls below 0.875 after 4 steps: 5s / (1 + 4s) with s = 1/2 gives 0.833
    common = {"cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "steps": steps, "noise_seed": SEED}
    conditioning = {"positive": ["positive", 0], "negative": ["negative", 0]}
    graph["first"] = node(
        "KSamplerAdvanced", model=[f"high_{used}", 0], add_noise="enable", latent_image=["empty", 0], start_at_step=0,
        end_at_step=switch, return_with_leftover_noise="enable", **common, **conditioning,
    )  # fmt: skip
    graph["second"] = node(
        "KSamplerAdvanced", model=[f"low_{used}", 0], add_noise="disable", latent_image=["first", 0], start_at_step=switch,
        end_at_step=10000, return_with_leftover_noise="disable", **common, **conditioning,
    )  # fmt: skip
    graph["decoded"] = node("VAEDecode", samples=["second", 0], vae=["vae", 0])
    graph["saved"] = node("SaveImage", images=["decoded", 0], filename_prefix="own")
    return graph


def test_the_preview_is_the_users_own_graph(host, pair):
    models = {
        f"{stage}_model": node("UNETLoader", unet_name=f"wan_mini_{stage}_noise.safetensors", weight_dtype="default")
        for stage in ("high", "low")
    }
    preview = {**pair, **models}
    preview["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], low=["low_model", 0], clip=["clip", 0], vae=["vae", 0],
        prompt="[trigger] a red circle", negative_prompt="blurry", width=64, height=64, num_frames=9, steps=STEPS, cfg=2.0,
        seed=SEED, shift=SHIFT, boundary=0.875, sampler="euler", scheduler="simple", strength=1.0, compare=True,
        fps=16.0,
    )  # fmt: skip
    preview["on"] = node("SaveImage", images=["preview", 0], filename_prefix="on")
    preview["off"] = node("SaveImage", images=["preview", 1], filename_prefix="off")
    ours = host.run(preview)
    assert succeeded(ours)
    shared = {name: pair[name] for name in ("vae", "clip")}
    for output, lora in (("on", True), ("off", False)):
        theirs = host.run({**shared, **models, **own_graph(lora)})
        assert succeeded(theirs)
        assert np.array_equal(frames(host, ours, output), frames(host, theirs, "saved")), output
    assert not np.array_equal(frames(host, ours, "on"), frames(host, ours, "off"))


def test_the_preview_of_few_steps_has_the_loras_that_are_put_on_before_it(host, pair):
    """As with lightx2v: LoraLoaderModelOnly before both experts, 4 steps, cfg 1, shift 5, two steps each."""
    loras = host.base / "models" / "loras"
    shutil.copy(loras / "shown_low_noise.safetensors", loras / "few_steps.safetensors")
    models = {}
    for stage in ("high", "low"):
        name = f"wan_mini_{stage}_noise.safetensors"
        models[f"{stage}_plain"] = node("UNETLoader", unet_name=name, weight_dtype="default")
        models[f"{stage}_model"] = node(
            "LoraLoaderModelOnly", model=[f"{stage}_plain", 0], lora_name="few_steps.safetensors", strength_model=1.0
        )
    shown = {**pair, **models}
    shown["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], low=["low_model", 0], clip=["clip", 0], vae=["vae", 0],
        prompt="[trigger] a red circle", negative_prompt="", width=64, height=64, num_frames=9, steps=4, cfg=1.0,
        seed=SEED, shift=SHIFT, boundary=0.875, sampler="euler", scheduler="simple", strength=1.0, compare=True,
        fps=16.0,
    )  # fmt: skip
    for number, name in enumerate(("on", "off")):
        shown[name] = node("SaveImage", images=["preview", number], filename_prefix=name)
    ours = host.run(shown)
    assert succeeded(ours)
    shared = {name: pair[name] for name in ("vae", "clip")}
    for output, lora in (("on", True), ("off", False)):
        theirs = host.run({**shared, **models, **own_graph(lora, steps=4, cfg=1.0, switch=2)})
        assert succeeded(theirs)
        assert np.array_equal(frames(host, ours, output), frames(host, theirs, "saved")), output
    assert not np.array_equal(frames(host, ours, "on"), frames(host, ours, "off"))


def test_a_lora_of_another_model_is_refused_by_the_preview(host, pair):
    from safetensors.torch import save_file
    from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit

    size = DiTSize(num_layers=2)
    file = host.base / "models" / "diffusion_models" / "shallow.safetensors"
    save_file(wan_dit(size), file, metadata=dit_metadata(size))
    prompt = {
        **pair,
        "high_model": node("UNETLoader", unet_name="shallow.safetensors", weight_dtype="default"),
        "low_model": node("UNETLoader", unet_name="shallow.safetensors", weight_dtype="default"),
        "preview": node(
            "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], low=["low_model", 0], clip=["clip", 0],
            vae=["vae", 0], prompt="x", negative_prompt="", width=64, height=64, num_frames=9, steps=2, cfg=1.0, seed=1,
            shift=5.0, boundary=0.875, sampler="euler", scheduler="simple", strength=1.0, compare=False, fps=16.0,
        ),
        "out": node("PreviewImage", images=["preview", 0]),
    }  # fmt: skip
    entry = host.run(prompt)
    error = dict(entry["status"]["messages"])["execution_error"]
    assert error["node_id"] == "preview"
    assert "has 30 modules, but only 20 of them belong to this model" in error["exception_message"]


def test_captions_are_taken_as_written_and_cut_at_512_tokens(host):
    folder = host.base / "input" / "captions"
    draw_dataset(folder, clips=0, images=3, size=64, seed=9)
    texts = ("a red circle", "((a (red) circle:1.5))", "word " * 400)
    for path, text in zip(sorted(folder.glob("*.txt")), texts, strict=True):
        path.write_text(text)
    prompt = data_graph(folder="input/captions", trigger_word="")
    prompt["out"] = node("PreviewAny", source=["text", 0])
    entry = host.run(prompt)
    assert succeeded(entry)
    report = entry["outputs"]["text"]["text"][0]
    assert "the longest has 512 of 512 tokens" in report
    assert "512" in report.splitlines()[1]  # the note about the caption that was cut
    cache = host.base / "output" / "wan_train" / "cache" / "text"
    rows = {}
    for path in cache.rglob("*.safetensors"):
        with safe_open(str(path), "pt") as file:
            rows[path.name] = file.get_slice("context").get_shape()[0]
    plain, weighted = len("a red circle"), len(texts[1])
    # The miniature's tokens are characters: brackets and numbers are part of the text, and none is a weight.
    assert any(abs(n - plain) <= 2 for n in rows.values())
    assert any(abs(n - weighted) <= 2 for n in rows.values())
    assert max(rows.values()) == 512
    shutil.rmtree(folder)


def test_dropping_the_pair_socket_of_a_second_expert_is_refused(host, pair):
    prompt = {
        **pair,
        "high_model": node("UNETLoader", unet_name="wan_mini_high_noise.safetensors", weight_dtype="default"),
        "preview": node(
            "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], clip=["clip", 0], vae=["vae", 0], prompt="x",
            negative_prompt="", width=64, height=64, num_frames=9, steps=2, cfg=1.0, seed=1, shift=5.0, boundary=0.875,
            sampler="euler", scheduler="simple", strength=1.0, compare=False, fps=16.0,
        ),
        "out": node("PreviewImage", images=["preview", 0]),
    }  # fmt: skip
    entry = host.run(changed(prompt, "preview", seed=2))
    error = dict(entry["status"]["messages"])["execution_error"]
    assert "no low noise model is connected" in error["exception_message"]


def test_the_video_says_which_half_is_which_and_is_called_by_the_lora(host, pair):
    prompt = {
        **pair,
        "high_model": node("UNETLoader", unet_name="wan_mini_high_noise.safetensors", weight_dtype="default"),
        "low_model": node("UNETLoader", unet_name="wan_mini_low_noise.safetensors", weight_dtype="default"),
        "preview": node(
            "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], low=["low_model", 0], clip=["clip", 0],
            vae=["vae", 0], prompt="shp a red circle", negative_prompt="", width=64, height=64, num_frames=5, steps=2,
            cfg=1.0, seed=1, shift=0.0, boundary=0.0, sampler="euler", scheduler="simple", strength=1.0, compare=True,
            fps=16.0,
        ),
        "video": node(
            "SaveVideo", video=["preview", 2], filename_prefix=["preview", 3], format="mp4", **{"format.codec": "h264"}
        ),
    }  # fmt: skip
    entry = host.run(prompt)
    assert succeeded(entry)
    (file,) = (host.base / "output" / "video").glob("shown*.mp4")
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (64 + 16, 128, 3)
    words = ("without the LoRA", "with the LoRA")

    def difference(titles):
        return np.abs(frame[:16].astype(int) - title_strip(titles, 128, 64)).mean()

    # As a video keeps them: nearer to these words, in their places, than to others.
    others = [words[::-1], ("with the LoRA", "with the LoRA"), ("without the LoRA", "without the LoRA"), ("", "")]
    assert difference(words) < 0.5 * min(map(difference, others))
