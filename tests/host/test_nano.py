"""The nano family on the real host: listed by its loaders, and used by its own nodes."""

import shutil

import pytest
from PIL import Image
from wan_train.core.errors import ConfigError
from wan_train.tests.host.graphs import Json, data_graph, node
from wan_train.tests.host.runs import succeeded


def choices(host, class_type: str, field: str) -> list[str]:
    spec = host.object_info()[class_type]["input"]["required"][field]
    return spec[0] if isinstance(spec[0], list) else spec[1]["options"]


@pytest.mark.parametrize(
    ("class_type", "field", "names"),
    [
        ("LoadWanDiT", "model_name", ["wan_nano_t2v_high_noise.safetensors", "wan_nano_t2v_low_noise.safetensors"]),
        ("UNETLoader", "unet_name", ["wan_nano_t2v_high_noise.safetensors", "wan_nano_t2v_low_noise.safetensors"]),
        ("VAELoader", "vae_name", ["wan_nano_vae.safetensors"]),
        ("WanLoadUMT5", "name", ["wan_nano_umt5.safetensors"]),
        ("DatasetFromFolder", "folder", ["nano/dive"]),
    ],
)
def test_the_hosts_loaders_list_what_comes_with_the_pack(host, class_type, field, names):
    assert set(names) <= set(choices(host, class_type, field))


def test_its_clips_are_a_dataset(host):
    prompt = data_graph(folder="nano/dive", num_frames=17, trigger_word="")
    prompt = {name: prompt[name] for name in ("data", "text")}
    prompt["text"]["inputs"]["clip"] = ["family", 2]
    prompt["family"] = node("WanNanoFamily")
    prompt["out"] = node("PreviewAny", source=["text", 0])
    entry = host.run(prompt)
    assert succeeded(entry)
    assert entry["outputs"]["data"]["text"][0].startswith("24 clips, 0 images: 24 samples an epoch")


def sampled(stage: int, vae: list) -> Json:
    """The host's own graph of a small video by one expert."""
    text = {"clip": ["family", 2]}
    return {
        "family": node("WanNanoFamily"),
        "yes": node("CLIPTextEncode", text="a large red circle moving left on a black background", **text),
        "no": node("CLIPTextEncode", text="", **text),
        "noise": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        "sample": node(
            "KSampler", model=["family", stage], positive=["yes", 0], negative=["no", 0], latent_image=["noise", 0],
            seed=1, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "frames": node("VAEDecode", samples=["sample", 0], vae=vae),
        "save": node("SaveImage", images=["frames", 0], filename_prefix=f"nano_{stage}"),
    }  # fmt: skip


def pictures(host, prompt: Json) -> list[bytes]:
    entry = host.run(prompt)
    assert succeeded(entry)
    return [
        Image.open(host.base / "output" / item["subfolder"] / item["filename"]).tobytes()
        for item in entry["outputs"]["save"]["images"]
    ]


def test_its_outputs_are_what_the_hosts_own_nodes_take(host):
    high, low = (pictures(host, sampled(stage, ["family", 3])) for stage in (0, 1))
    assert [len(picture) for picture in high] == [64 * 64 * 3] * 5
    assert high != low


def test_it_loads_the_same_vae_as_the_hosts_loader(host):
    prompt = sampled(0, ["loaded", 0])
    prompt["loaded"] = node("VAELoader", vae_name="wan_nano_vae.safetensors")
    assert pictures(host, prompt) == pictures(host, sampled(0, ["family", 3]))


def test_an_incomplete_pack_is_one_sentence(comfy, tmp_path, monkeypatch):
    from wan_train.nodes import nano_nodes
    from wan_train.nodes.host import folders

    shutil.copytree(folders.NANO / "vae", tmp_path / "vae")
    monkeypatch.setattr(folders, "NANO", tmp_path)
    assert nano_nodes.nano_file("vae", nano_nodes.VAE) == tmp_path / "vae" / nano_nodes.VAE
    with pytest.raises(ConfigError, match=r"high_noise\.safetensors is missing: install ComfyUI-WanTrain again"):
        nano_nodes.WanNanoFamily.execute()
