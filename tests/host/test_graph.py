"""The whole graph on the real host: dataset, caches, both stages, the pair of files, preview, loss curves."""

import json
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.settings.job import job_from_json
from wan_train.tests.host.graphs import changed, node, one_stage, two_stages
from wan_train.tests.host.runs import run_folders, succeeded, until
from wan_train.tools.miniature import I2V_22, dit_metadata, wan_dit
from wan_train.tools.workflow import ui_to_api

PACK = Path(__file__).resolve().parents[2]
NODE_IDS = {
    "LoadWanDiT", "DatasetFromFolder", "CacheLatents", "CacheT5", "TrainLoRAStage", "MergeStages", "PreviewLoRA",
    "WanLoadUMT5", "WanLoRAFromFile", "WanNanoFamily", "JoinDatasets", "CaptionDataset",
    "WanTimestepCurve", "WanTimestepDensity", "WanMergeLoRAs", "WanChangeLoRA", "WanExtractLoRA", "WanFoldLoRA", "WanCheckLoRA",
    "WanCompareCheckpoints", "WanSplitLoRA",
}  # fmt: skip
EXAMPLES = sorted((PACK / "example_workflows").glob("*.json"))


def own(info):
    return {name: n for name, n in info.items() if n["category"].startswith("training/Wan")}


def fields(node_info):
    return {**node_info["input"].get("required", {}), **node_info["input"].get("optional", {})}


def test_the_host_lists_the_nodes_each_input_with_a_tooltip(host):
    nodes = own(host.object_info())
    assert set(nodes) == NODE_IDS
    for name, info in nodes.items():
        assert info["description"], name
        for field, spec in fields(info).items():
            assert spec[1].get("tooltip"), f"{name}.{field}"
        assert all(info["output_tooltips"]), name


def test_rare_inputs_are_folded_away(host):
    nodes = own(host.object_info())
    for name, shown in {"TrainLoRAStage": 13, "DatasetFromFolder": 5, "MergeStages": 3, "PreviewLoRA": 16}.items():
        plain = [field for field, spec in fields(nodes[name]).items() if not spec[1].get("advanced")]
        assert len(plain) <= shown, plain


def test_every_node_has_a_help_page_on_the_server(host):
    import urllib.request

    extensions = host.server.request("/extensions")
    (script,) = [path for path in extensions if path.endswith("/wan_train.js")]
    docs = PACK / "web" / "docs"
    assert {path.stem for path in docs.glob("*.md")} == set(NODE_IDS)
    for path in docs.rglob("*.md"):  # NODE.md, and NODE/LANGUAGE.md
        address = f"{host.url}{script.removesuffix('wan_train.js')}docs/{path.relative_to(docs).as_posix()}"
        assert urllib.request.urlopen(address).read() == path.read_bytes(), path


def graph(host):
    prompt = two_stages(lora_name="whole", steps=5, seed=21, rank=4)
    # Unlike every other test's, so that no node's output comes from the host's cache.
    prompt = changed(changed(prompt, "data", slide_stride=17), "high_dit", precision="fp32")
    prompt["pair"] = node(
        "MergeStages", high=["high_train", 0], low=["low_train", 0], name="whole", precision="bf16",
        key_style="comfyui", rank=0, author="somebody", description="made by a test", second_strength=1.0,
    )  # fmt: skip
    for stage in ("high", "low"):
        file = f"wan_mini_{stage}_noise.safetensors"
        prompt[f"{stage}_model"] = node("UNETLoader", unet_name=file, weight_dtype="default")
        prompt[f"{stage}_curve"] = node("LossGraphNode", loss=[f"{stage}_train", 2], filename_prefix=f"curve_{stage}")
    prompt["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], low=["low_model", 0], clip=["clip", 0], vae=["vae", 0],
        prompt="shp a red circle", negative_prompt="", width=64, height=64, num_frames=9, steps=6, cfg=2.0, seed=3,
        shift=0.0, boundary=0.875, sampler="euler", scheduler="simple", strength=1.0, compare=True, fps=16.0,
    )  # fmt: skip
    prompt["video"] = node(
        "SaveVideo", video=["preview", 2], filename_prefix="whole", format="mp4", **{"format.codec": "h264"}
    )
    prompt["on"] = node("SaveImage", images=["preview", 0], filename_prefix="on")
    prompt["off"] = node("SaveImage", images=["preview", 1], filename_prefix="off")
    return prompt


@pytest.fixture(scope="module")
def finished(host):
    prompt = graph(host)
    host.events.clear()
    entry = host.run(prompt)
    assert succeeded(entry)
    return prompt, entry, list(host.events)


def test_a_pair_of_loras_lies_in_the_loras_folder(host, finished):
    files = {stage: host.base / "models" / "loras" / f"whole_{stage}_noise.safetensors" for stage in ("high", "low")}
    for stage, window in (("high", "875,1000"), ("low", "0,875")):
        lora = read_lora(files[stage])
        assert len(lora.modules) == 30
        assert lora.expert == stage
        assert lora.metadata["modelspec.timestep_range"] == window
        assert lora.metadata["modelspec.title"] == f"whole_{stage}_noise"
        assert lora.metadata["modelspec.author"] == "somebody"
        assert lora.metadata["modelspec.trigger_phrase"] == "shp"
        assert lora.metadata["ss_base_model_version"].startswith("wan2.2-t2v")
        assert json.loads(lora.metadata["wantrain.job"])["loop"]["steps"] == 5
        assert json.loads(lora.metadata["prompt"])["high_train"]["class_type"] == "TrainLoRAStage"
        with safe_open(str(files[stage]), "pt") as file:
            assert {file.get_tensor(k).dtype for k in file.keys() if "lora_" in k} == {torch.bfloat16}  # noqa: SIM118
    names = host.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    assert {"whole_high_noise.safetensors", "whole_low_noise.safetensors"} <= set(names)


def test_the_preview_is_a_video_with_and_without(host, finished):
    _, entry, _ = finished
    (video,) = entry["outputs"]["video"]["images"]
    with av.open(str(host.base / "output" / video["subfolder"] / video["filename"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 16
    assert len(frames) == 9
    assert frames[0].shape == (16 + 64, 128, 3)  # below the titles
    pixels = {}
    for which in ("on", "off"):
        first = entry["outputs"][which]["images"][0]
        pixels[which] = (host.base / "output" / first["subfolder"] / first["filename"]).read_bytes()
    assert pixels["on"] != pixels["off"]


def test_the_host_draws_both_loss_curves(finished):
    _, entry, _ = finished
    assert all(len(entry["outputs"][f"{stage}_curve"]["images"]) == 1 for stage in ("high", "low"))


def test_progress_bar_and_chart_events(finished):
    _, _, events = finished
    states = [
        e.data["nodes"]["high_train"] for e in events if e.type == "progress_state" and "high_train" in e.data["nodes"]
    ]
    assert max(s["value"] for s in states) == 5
    updates = [e.data for e in events if e.type == "wan_train.update" and e.data["node_id"] == "high_train"]
    assert (updates[0]["state"], updates[0]["line"]) == ("waiting", "starting the trainer")
    assert (updates[-1]["state"], updates[-1]["asks"]) == ("finished", [])
    assert sorted(step for update in updates for step, _ in update["losses"]) == [1, 2, 3, 4, 5]


def test_numbers_stand_beside_the_curve_while_it_trains(host):
    seen = len(host.events)

    def told():
        updates = [event.data for event in host.events[seen:] if event.type == "wan_train.update"]
        return next((facts for update in updates if len(facts := update["facts"]) > 2), None)

    prompt_id = host.queue(one_stage(lora_name="numbers", steps=30000, seed=24))
    facts = until(told, "numbers")
    host.interrupt(prompt_id)
    host.wait(prompt_id)
    assert [" left" in facts[0], " s a step" in facts[1], facts[2]] == [True, True, "learning rate 1.00e-03"]


def test_reports_are_on_the_nodes(finished):
    _, entry, _ = finished
    text = {name: entry["outputs"][name]["text"][0] for name in ("data", "latents", "text", "high_dit", "pair")}
    assert text["data"].startswith("2 clips, 1 image: 3 samples an epoch")
    assert "3 samples in the cache" in text["latents"]
    assert "captions in the cache" in text["text"]
    assert "3 blocks, width 96, 456 k parameters" in text["high_dit"]
    assert "30 modules, rank 4" in text["pair"]
    assert "another file is called" not in text["pair"]


def test_queued_again_everything_returns_at_once(host, finished):
    prompt, _, _ = finished
    before = run_folders(host)
    written = {folder: (folder / "events.jsonl").read_bytes() for folder in before}
    assert succeeded(host.run(prompt))
    assert run_folders(host) == before
    assert {folder: (folder / "events.jsonl").read_bytes() for folder in before} == written  # no run was begun
    assert not list((host.base / "models" / "loras").glob("whole_v2*"))


def test_another_lora_of_the_same_name_does_not_overwrite(host, finished):
    prompt, _, _ = finished
    loras = host.base / "models" / "loras"
    old = (loras / "whole_high_noise.safetensors").read_bytes()
    other = changed(changed(prompt, "pair", rank=2), "preview", steps=4)
    entry = host.run(other)
    assert succeeded(entry)
    assert entry["outputs"]["pair"]["text"][0].splitlines()[-1] == (
        "- another file is called whole, and stays as it is: what was made now is whole_v2"
    )
    assert (loras / "whole_high_noise.safetensors").read_bytes() == old
    assert read_lora(loras / "whole_v2_high_noise.safetensors").ranks == (2,)


def test_the_runs_history_is_served_after_a_reload(host, finished):
    import urllib.error

    (folder,) = [p for p in run_folders(host) if p.name.startswith("whole_high")]
    answer = host.server.request(f"/wan_train/runs/{folder.name}")
    assert answer["state"] == "finished"
    assert [step for step, _ in answer["losses"]] == [1, 2, 3, 4, 5]
    for bad in ("nothing", "..%2F..%2Fwhole", "%2e%2e"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            host.server.request(f"/wan_train/runs/{bad}")


def test_a_lora_of_a_peer_is_read_and_merged(host, finished):
    """A kohya file made by this pack stands for musubi-tuner's: the same keys."""
    prompt, _, _ = finished
    assert succeeded(host.run(changed(prompt, "pair", key_style="kohya", name="kohya")))
    merge = {
        "file": node("WanLoRAFromFile", lora_file="kohya_high_noise.safetensors", stage="auto"),
        "pair": node(
            "MergeStages", high=["file", 0], second_high=["file", 0], second_strength=0.5, name="sum",
            precision="fp32", key_style="comfyui", rank=0, author="", description="",
        ),
    }  # fmt: skip
    assert succeeded(host.run(merge))
    loras = host.base / "models" / "loras"
    one, both = read_lora(loras / "kohya_high_noise.safetensors"), read_lora(loras / "sum_high_noise.safetensors")
    assert one.style == "kohya"
    for path, module in one.modules.items():
        assert torch.allclose(both.modules[path].delta(), 1.5 * module.delta(), atol=1e-6)


def test_the_hosts_own_loader_takes_the_lora_model_output(host):
    prompt = one_stage("high", lora_name="model", seed=22, steps=2)
    prompt["base"] = node("UNETLoader", unet_name="wan_mini_high_noise.safetensors", weight_dtype="default")
    prompt["use"] = node("LoraModelLoader", model=["base", 0], lora=["high_train", 1], strength_model=1.0, bypass=False)
    prompt["save"] = node("ModelSave", model=["use", 0], filename_prefix="with_lora")
    lines = len(host.log_text().splitlines())
    assert succeeded(host.run(prompt))
    assert "lora key not loaded" not in "\n".join(host.log_text().splitlines()[lines:])


OF_PREVIEWS = {
    "preview_skip_layers": "1",  # the miniature has three blocks
    "preview_width": 64, "preview_height": 64, "preview_frames": 9, "preview_steps": 4,
}  # fmt: skip


LATER = {"epochs", "min_megapixels"}  # widgets that workflows of earlier versions do not have


def small(prompt, of_previews=OF_PREVIEWS):
    """An example workflow made small enough for the CPU: miniature files under the names that it asks for."""
    sizes = {
        "DatasetFromFolder": {
            "folder": "input/shapes",
            "min_megapixels": 0.0,
            "width": 64,
            "height": 64,
            "num_frames": 9,
            "trigger_word": "shp",
        },
        "TrainLoRAStage": {
            "steps": 2,
            "epochs": 0,
            "rank": 4,
            "alpha": 4.0,
            "optimizer": "adamw",
            "lora_name": "example",
        },
        "PreviewLoRA": {"width": 64, "height": 64, "num_frames": 9, "steps": 2, "cfg": 1.0},
    }
    for item in prompt.values():
        values = sizes.get(item["class_type"], {})
        assert set(values) - LATER <= set(item["inputs"])
        item["inputs"].update({name: value for name, value in values.items() if name in item["inputs"]})
        for name, value in of_previews.items():
            if item["inputs"].get(name):
                item["inputs"][name] = value
    return prompt


FILES = {"UNETLoader": "unet_name", "LoadWanDiT": "model_name", "VAELoader": "vae_name", "CLIPLoader": "clip_name"}
FOLDERS = {
    "UNETLoader": "diffusion_models",
    "LoadWanDiT": "diffusion_models",
    "VAELoader": "vae",
    "CLIPLoader": "text_encoders",
}
MINIATURES = {"vae": "wan_mini_vae", "text_encoders": "wan_mini_umt5"}


def provide_models(host, prompt):
    """Copy miniature files to the names in the workflow."""
    for item in prompt.values():
        if item["class_type"] not in FILES or item["inputs"][FILES[item["class_type"]]].startswith("wan_nano"):
            continue
        name, folder = item["inputs"][FILES[item["class_type"]]], FOLDERS[item["class_type"]]
        target = host.base / "models" / folder / name
        if target.exists():
            continue
        stage = "low" if "low" in name else "high"
        if "_i2v_" in name:
            save_file(wan_dit(I2V_22, seed=len(stage)), target, metadata=dit_metadata(I2V_22))
        else:
            source = MINIATURES.get(folder, f"wan_mini_{stage}_noise")
            target.write_bytes((host.base / "models" / folder / f"{source}.safetensors").read_bytes())


@pytest.mark.grid(4)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_workflow_runs(host, path):
    """TI2V 5B with a text-to-video model and the Wan 2.1 VAE in its place: a Wan 2.2 VAE cannot be made small."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = small(ui_to_api(workflow, host.object_info()))
    provide_models(host, prompt)
    for item in prompt.values():
        if item["class_type"] == "TrainLoRAStage":  # made small, some templates would be one training
            item["inputs"]["seed"] = 100 + EXAMPLES.index(path)
        if item["class_type"] == "LoadImage":
            Image.new("RGB", (80, 64), (30, 90, 200)).save(host.base / "input" / item["inputs"]["image"])
    before = run_folders(host)
    entry = host.run(prompt)
    assert succeeded(entry)
    jobs = [job_from_json((folder / "job.json").read_text(encoding="utf-8")) for folder in run_folders(host) - before]
    stages = [item["inputs"]["stage"] for item in prompt.values() if item["class_type"] == "TrainLoRAStage"]
    assert len(jobs) == len(stages)
    if "i2v" in path.stem.split("_"):
        assert {job.data.conditioning for job in jobs} == {"first frame"}
        assert {(job.timesteps.sigma_min, job.timesteps.sigma_max) for job in jobs} == {(0.0, 0.9), (0.9, 1.0)}
    saved = [output for output in entry["outputs"].values() if output.get("animated") or output.get("images")]
    assert [file["filename"].startswith("example") for output in saved for file in output["images"]] == [True]
