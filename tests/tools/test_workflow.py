"""Both directions of the workflow converter, on definitions as a real ComfyUI gives them."""

import json
from functools import partial
from pathlib import Path

import pytest
from wan_train.core.recipe.presets import preset
from wan_train.tools.examples import (
    demo_sketch,
    i2v_a14b_sketch,
    quickstart_sketch,
    recipe_sketch,
    t2v_1_3b_sketch,
    t2v_a14b_sketch,
    ti2v_5b_sketch,
)
from wan_train.tools.layout import Page, api_to_ui
from wan_train.tools.workflow import WorkflowError, ui_to_api

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"


def node_definition(inputs, outputs=(), **further):
    return {
        "input": inputs,
        "output": list(outputs),
        "output_name": [kind.lower() for kind in outputs],
        "python_module": "nodes",
        **further,
    }


OBJECT_INFO = {
    "Loader": node_definition({"required": {"file": [["a.safetensors", "b.safetensors"]]}}, ["MODEL", "CLIP"]),
    "Sampler": node_definition(
        {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "text": ["STRING", {"multiline": True}],
                "mode": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "auto", "inputs": {"required": {}}},
                            {"key": "tuned", "inputs": {"required": {"power": ["FLOAT", {"default": 1.0}]}}},
                        ]
                    },
                ],
            },
            "optional": {
                "tags": ["COMBO", {"multiselect": True, "options": ["x", "y"], "advanced": True}],
                "extra": ["MODEL", {}],
            },
        },
        ["LATENT"],
        python_module="custom_nodes.ComfyUI-WanTrain",
    ),
    "Save": node_definition({"required": {"latent": ["LATENT", {}], "seed": ["INT", {}]}}, output_node=True),
    "Pick": node_definition({"required": {"image": [["x.png"], {"image_upload": True}], "scale": ["FLOAT", {}]}}),
}

PROMPT = {
    "3": {"class_type": "Loader", "inputs": {"file": "b.safetensors"}},
    "4": {
        "class_type": "Sampler",
        "inputs": {
            "model": ["3", 0],
            "seed": 11,
            "cfg": 2.5,
            "text": "two\nlines",
            "mode": "tuned",
            "mode.power": 0.5,
            "tags": {"__value__": ["y"]},
        },
    },
    "5": {"class_type": "Save", "inputs": {"latent": ["4", 0], "seed": 3}},
    "6": {"class_type": "Pick", "inputs": {"image": "x.png", "scale": 2.0}},
}


def without_titles(prompt):
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}


def ui_node(ui, node_id):
    return next(node for node in ui["nodes"] if node["id"] == node_id)


def test_round_trip_keeps_every_value():
    assert without_titles(ui_to_api(api_to_ui(PROMPT, OBJECT_INFO), OBJECT_INFO)) == PROMPT


def test_widget_values_hold_control_and_upload_entries():
    ui = api_to_ui(PROMPT, OBJECT_INFO)
    assert ui_node(ui, 4)["widgets_values"] == [11, "fixed", 2.5, "two\nlines", "tuned", 0.5, ["y"]]
    assert ui_node(ui, 5)["widgets_values"] == [3, "fixed"]
    assert ui_node(ui, 6)["widgets_values"] == ["x.png", "image", 2.0]


def test_missing_widgets_get_defaults():
    prompt = {"1": {"class_type": "Sampler", "inputs": {}}}
    inputs = ui_to_api(api_to_ui(prompt, OBJECT_INFO), OBJECT_INFO)["1"]["inputs"]
    assert inputs == {"seed": 0, "cfg": 8.0, "text": "", "mode": "auto", "tags": "x"}


def test_bypassed_and_muted_nodes_are_resolved():
    prompt = {
        "1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}},
        "2": {"class_type": "Sampler", "inputs": {**PROMPT["4"]["inputs"], "model": ["1", 0]}},
    }
    ui = api_to_ui(prompt, OBJECT_INFO)
    ui_node(ui, 1)["mode"] = 2
    assert "model" not in ui_to_api(ui, OBJECT_INFO)["2"]["inputs"]
    reroute = {"id": 9, "type": "Reroute", "mode": 0, "inputs": [{"name": "", "type": "*", "link": 1}]}
    ui_node(ui, 1)["mode"] = 0
    ui["nodes"].append(reroute)
    ui["links"].append([2, 9, 0, 2, 0, "MODEL"])
    ui_node(ui, 2)["inputs"][0]["link"] = 2
    assert ui_to_api(ui, OBJECT_INFO)["2"]["inputs"]["model"] == ["1", 0]


def test_inputs_that_grow_are_kept_where_they_are_connected():
    info = {
        **OBJECT_INFO,
        "Join": node_definition({"required": {"all": ["COMFY_AUTOGROW_V3", {"template": {}}]}}, ["MODEL"]),
    }
    ui = api_to_ui({"1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}}}, OBJECT_INFO)
    sockets = [{"name": f"all.one_{i}", "type": "MODEL", "link": link} for i, link in enumerate((1, None))]
    ui["nodes"].append({"id": 2, "type": "Join", "mode": 0, "inputs": sockets, "outputs": []})
    ui["links"].append([1, 1, 0, 2, 0, "MODEL"])
    assert ui_to_api(ui, info)["2"]["inputs"] == {"all.one_0": ["1", 0]}


def test_unknown_node_is_named():
    with pytest.raises(WorkflowError, match="uses the node 'Missing'"):
        ui_to_api({"nodes": [{"id": 1, "type": "Missing"}], "links": []}, OBJECT_INFO)


def test_unknown_input_is_named():
    with pytest.raises(WorkflowError, match=r"Node 1 \(Loader\) has no input named 'fil'"):
        api_to_ui({"1": {"class_type": "Loader", "inputs": {"fil": "a"}}}, OBJECT_INFO)


def test_own_nodes_carry_the_pack_and_loaders_their_models():
    model = {"name": "b.safetensors", "url": "https://example.org/b.safetensors", "directory": "diffusion_models"}
    ui = api_to_ui(PROMPT, OBJECT_INFO, Page(models={"3": [model]}, version="1.2.3"))
    assert ui_node(ui, 4)["properties"] == {"Node name for S&R": "Sampler", "cnr_id": "wan-train", "ver": "1.2.3"}
    assert ui_node(ui, 3)["properties"]["models"] == [model]


def boxes_overlap(first, second):
    (x1, y1), (w1, h1) = first["pos"], first["size"]
    (x2, y2), (w2, h2) = second["pos"], second["size"]
    title = 30  # drawn above a node's position
    return x1 < x2 + w2 and x2 < x1 + w1 and y1 - title < y2 + h2 and y2 - title < y1 + h1


@pytest.fixture(scope="module")
def demo_ui():
    return json.loads((EXAMPLES / "demo.json").read_text(encoding="utf-8"))


def test_demo_nodes_do_not_overlap_and_lie_in_their_group(demo_ui):
    nodes = demo_ui["nodes"]
    pairs = [(a["id"], b["id"]) for a in nodes for b in nodes if a["id"] < b["id"] and boxes_overlap(a, b)]
    assert pairs == []
    graph_nodes = [node for node in nodes if node["type"] != "MarkdownNote"]
    for node in graph_nodes:
        holders = [
            group
            for group in demo_ui["groups"]
            if group["bounding"][0] <= node["pos"][0]
            and node["pos"][0] + node["size"][0] <= group["bounding"][0] + group["bounding"][2]
            and node["pos"][1] + node["size"][1] <= group["bounding"][1] + group["bounding"][3]
        ]
        assert len(holders) == 1, node["type"]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("demo", demo_sketch),
        ("wan2.1_t2v_1.3b_lora", t2v_1_3b_sketch),
        ("wan2.2_t2v_a14b_lora", t2v_a14b_sketch),
        ("wan2.2_i2v_a14b_lora", i2v_a14b_sketch),
        ("wan2.2_ti2v_5b_lora", ti2v_5b_sketch),
        ("wan2.2_t2v_a14b_motion", partial(recipe_sketch, preset("motion-24gb").values(), "t2v")),
        ("wan2.2_t2v_a14b_style", partial(recipe_sketch, preset("style-24gb").values(), "t2v")),
        ("wan2.2_t2v_a14b_character", partial(recipe_sketch, preset("character-24gb").values(), "t2v")),
        ("wan2.2_t2v_a14b_images", partial(recipe_sketch, preset("wan2.2-t2v-images").values(), "t2v")),
        ("wan2.1_t2v_1.3b_quickstart", partial(quickstart_sketch, preset("simpletuner-quickstart").values())),
        ("wan2.2_i2v_a14b_effect", partial(recipe_sketch, preset("effect-24gb").values(), "i2v")),
    ],
)
def test_a_workflow_file_is_its_sketch(name, make):
    ui, sketch = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")), make()
    nodes = {str(node["id"]): node for node in ui["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["type"] for key, node in nodes.items()} == {
        key: entry["class_type"] for key, entry in sketch.prompt.items()
    }
    found = {key: {} for key in nodes}
    for _, source, slot, target, index, kind in ui["links"]:
        found[str(target)][nodes[str(target)]["inputs"][index]["name"]] = [str(source), slot]
        assert nodes[str(source)]["outputs"][slot]["type"] == kind
    for key, entry in sketch.prompt.items():
        assert found[key] == {name: value for name, value in entry["inputs"].items() if isinstance(value, list)}
        assert nodes[key]["properties"].get("models", []) == sketch.models.get(key, [])
        values = [value for value in entry["inputs"].values() if not isinstance(value, list)]
        assert all(value in nodes[key]["widgets_values"] for value in values)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_template_holds_a_sample_out_and_shows_previews(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (dataset,) = (node for node in nodes if node["type"] == "DatasetFromFolder")
    assert values_of(dataset)["held_out"] >= 1
    trainings = [node for node in nodes if node["type"] == "TrainLoRAStage"]
    for node in trainings:
        assert values_of(node)["preview_every"] > 0
        assert values_of(node)["validate_every"] > 0
        wired = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        assert {"vae", *(["other_dit"] if len(trainings) > 1 else [])} <= wired


def values_of(node):
    names = [slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot]
    return dict(zip(names, node["widgets_values"], strict=False))


def test_ti2v_is_sampled_as_it_is_trained():
    """Where the miniature models of the host's tests cannot tell: sides for patches of 32 pixels, and 24 frames/s."""
    prompt = ti2v_5b_sketch().prompt.values()
    (dataset,) = (node["inputs"] for node in prompt if node["class_type"] == "DatasetFromFolder")
    (preview,) = (node["inputs"] for node in prompt if node["class_type"] == "PreviewLoRA")
    (vae,) = (node["inputs"] for node in prompt if node["class_type"] == "VAELoader")
    assert vae["vae_name"] == "wan2.2_vae.safetensors"
    assert preview["fps"] == dataset["fps"] == 24
    for inputs in (dataset, preview):
        assert inputs["width"] % 32 == inputs["height"] % 32 == 0
