"""The workflow of an import: the setup's values in the nodes, each dataset, one expert alone, what has no field."""

import json
from dataclasses import replace

import pytest
from wan_train.core.importers.workflow import workflow
from wan_train.tests.core.importers.given import DIFFUSION_PIPE, SETUPS, SIMPLETUNER, import_files


def made(files, names=None):
    graph, notes = workflow(import_files(files), names)
    return graph, notes


def nodes(graph, kind):
    return [node for node in graph["nodes"] if node["type"] == kind]


def values(node):
    names = [item["name"] for item in node["inputs"] if "widget" in item]
    return dict(zip(names, node["widgets_values"], strict=False))


def check_links(graph):
    """Both ends of each link know it, and nothing else."""
    by_id = {node["id"]: node for node in graph["nodes"]}
    assert len(by_id) == len(graph["nodes"])
    assert max(by_id) <= graph["last_node_id"]
    numbers = [link[0] for link in graph["links"]]
    assert len(set(numbers)) == len(numbers)
    for number, source, output, target, index, kind in graph["links"]:
        assert number in by_id[source]["outputs"][output]["links"]
        assert by_id[target]["inputs"][index]["link"] == number
        assert by_id[source]["outputs"][output]["type"] == kind
    ends = [item["link"] for node in by_id.values() for item in node["inputs"] if item.get("link") is not None]
    assert sorted(ends) == sorted(numbers)


@pytest.mark.parametrize("peer", SETUPS)
def test_links_are_whole(peer):
    graph, _ = made(SETUPS[peer])
    check_links(graph)


def test_values_of_the_guides_commands():
    graph, notes = made(SETUPS["musubi"])
    (data,) = nodes(graph, "DatasetFromFolder")
    assert values(data)["folder"] == "input/pictures"
    assert (values(data)["width"], values(data)["height"]) == (960, 960)
    assert any("/data/pictures into the folder pictures in ComfyUI's input" in note for note in notes)
    for node, stage in zip(nodes(graph, "TrainLoRAStage"), ("high noise", "low noise"), strict=True):
        found = values(node)
        assert (found["stage"], found["lora_name"], found["epochs"], found["seed"]) == (stage, "WAN2.2_mine", 100, 5)
        assert (found["learning_rate"], found["lr_schedule"], found["lr_power"], found["lr_floor"]) == (
            3e-4,
            "polynomial",
            8.0,
            5e-5,
        )
        assert (found["timestep_sampling"], found["timestep_shift"], found["boundary"]) == ("shift", 1.0, 0.875)
    names = [values(node)["model_name"] for node in nodes(graph, "LoadWanDiT")]
    assert names == ["wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2_t2v_low_noise_14B_fp16.safetensors"]
    assert values(nodes(graph, "MergeStages")[0])["author"] == "Ann"


def test_files_that_the_host_has_are_chosen():
    names = {
        "datasets": ["input/other", "datasets/mine/Pictures"],
        "diffusion_models": ["wan/wan2.2_t2v_high_noise_14B_fp16.safetensors"],
        "vae": ["wan_2.1_vae.safetensors"],
        "text_encoders": ["models_t5_umt5-xxl-enc-bf16.pth"],
    }
    graph, notes = made(SETUPS["musubi"], names)
    assert values(nodes(graph, "DatasetFromFolder")[0])["folder"] == "datasets/mine/Pictures"
    assert values(nodes(graph, "LoadWanDiT")[0])["model_name"] == "wan/wan2.2_t2v_high_noise_14B_fp16.safetensors"
    assert values(nodes(graph, "UNETLoader")[0])["unet_name"] == "wan/wan2.2_t2v_high_noise_14B_fp16.safetensors"
    assert values(nodes(graph, "CLIPLoader")[0])["clip_name"] == "models_t5_umt5-xxl-enc-bf16.pth"
    assert any(
        "Put wan2.2_t2v_low_noise_14B_fp16.safetensors into ComfyUI's models/diffusion_models" in one for one in notes
    )


def test_one_expert_alone_mutes_the_other():
    graph, _ = made(SETUPS["diffusion_pipe"])
    assert [node["mode"] for node in nodes(graph, "TrainLoRAStage")] == [2, 0]
    assert [node["mode"] for node in nodes(graph, "LoadWanDiT")] == [2, 0]


def test_several_datasets_are_joined():
    graph, _ = made(SETUPS["diffusion_pipe"])
    assert [values(node)["folder"] for node in nodes(graph, "DatasetFromFolder")] == ["input/grey", "input/colour"]
    assert [values(node)["repeats"] for node in nodes(graph, "DatasetFromFolder")] == [2, 5]
    (join,) = nodes(graph, "JoinDatasets")
    links = {link[0]: link for link in graph["links"]}
    sources = [links[item["link"]][1] for item in join["inputs"] if item["link"] is not None]
    assert sources == [node["id"] for node in nodes(graph, "DatasetFromFolder")]
    targets = {link[3] for link in graph["links"] if link[1] == join["id"]}
    assert targets == {node["id"] for kind in ("CacheLatents", "CacheT5") for node in nodes(graph, kind)}


def test_options_after_the_example_was_saved_have_their_places():
    graph, _ = made(SETUPS["aitoolkit"])
    found = values(nodes(graph, "DatasetFromFolder")[0])
    assert found["more_sizes"] == "768"
    assert found["drop_captions"] == 0.05
    assert found["frame_sampling"] == "even"


def test_previews_have_a_vae():
    graph, _ = made(SETUPS["aitoolkit"])
    (vae,) = nodes(graph, "VAELoader")
    links = {link[0]: link for link in graph["links"]}
    for node in nodes(graph, "TrainLoRAStage"):
        link = next(item["link"] for item in node["inputs"] if item["name"] == "vae")
        assert links[link][1] == vae["id"]


def test_prompts_of_previews_are_encoded_with_the_captions():
    graph, _ = made(SETUPS["aitoolkit"])
    check_links(graph)
    assert values(nodes(graph, "CacheT5")[0])["sample_prompts"].splitlines() == [
        "[trigger] around a castle", "[trigger] around a teddy bear",
    ]  # fmt: skip
    links = {link[0]: link for link in graph["links"]}
    high, low = nodes(graph, "LoadWanDiT")
    for node, other in zip(nodes(graph, "TrainLoRAStage"), (low, high), strict=True):
        link = next(item["link"] for item in node["inputs"] if item["name"] == "other_dit")
        assert links[link][1] == other["id"]


def test_prompts_are_for_the_preview_and_a_note():
    graph, _ = made(SETUPS["aitoolkit"])
    assert values(nodes(graph, "PreviewLoRA")[0])["prompt"] == "[trigger] around a castle"
    assert any("[trigger] around a teddy bear" in note["widgets_values"][0] for note in nodes(graph, "MarkdownNote"))


def test_what_has_no_field_is_told():
    imported = import_files(SETUPS["aitoolkit"])
    (dataset,) = imported.recipe.dataset
    recipe = replace(imported.recipe, dataset=(replace(dataset, control_clips="depth"),))
    _, notes = workflow(replace(imported, recipe=recipe), None)
    assert any("Nodes have no field for dataset.control_clips = depth" in note for note in notes)


def test_skip_layer_guidance_of_previews_has_its_fields():
    config = json.loads(SIMPLETUNER) | {
        "validation_guidance_skip_layers": [1],
        "validation_guidance_skip_layers_start": 0.1,
        "validation_guidance_skip_layers_stop": 0.3,
    }
    graph, notes = made({"config.json": json.dumps(config)})
    (train,) = nodes(graph, "TrainLoRAStage")
    assert (values(train)["preview_skip_start"], values(train)["preview_skip_stop"]) == (0.1, 0.3)
    assert not any("skip" in note for note in notes)


def test_the_optimizers_eps_has_its_field():
    graph, notes = made(SETUPS["diffusion_pipe"])
    assert 1e-6 in {values(node)["optimizer_eps"] for node in nodes(graph, "TrainLoRAStage")}
    assert not any("eps" in note for note in notes)


def test_image_to_video_of_wan_2_1_has_clip_vision():
    config = json.loads(SIMPLETUNER) | {"model_flavour": "i2v-14b-2.1"}
    graph, _ = made({"config.json": json.dumps(config)})
    check_links(graph)
    (vision,) = nodes(graph, "CLIPVisionLoader")
    assert {link[3] for link in graph["links"] if link[1] == vision["id"]} == {
        nodes(graph, "CacheLatents")[0]["id"], nodes(graph, "PreviewLoRA")[0]["id"],
    }  # fmt: skip
    assert values(nodes(graph, "CacheLatents")[0])["condition_on"] == "first frame"
    assert values(nodes(graph, "LoadWanDiT")[0])["model_name"] == "wan2.1_i2v_480p_14B_fp16.safetensors"


def test_a_number_beyond_its_field_is_told():
    files = {"c.toml": DIFFUSION_PIPE.replace("warmup_steps = 10", "warmup_steps = 90_000_000")}
    graph, notes = made(files)
    assert any("warmup_steps is" in note and "since its field has no 9e+07" in note for note in notes)
    assert values(nodes(graph, "TrainLoRAStage")[1])["warmup_steps"] < 90_000_000
