"""What a workflow does with a LoRA: the host's own template, and graphs as they are saved."""

import copy
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from wan_train.core.adapters.formats import LoraFile, LoraModule
from wan_train.core.errors import ConfigError
from wan_train.core.lora_check.findings import Weight
from wan_train.core.lora_check.graph import graph_of, read_graph
from wan_train.core.lora_check.workflow import check_workflow, uses_of

HIGH, LOW = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"


def lora(name="cat_high_noise.safetensors", width=5120):
    module = LoraModule(down=torch.ones(1, width), up=torch.ones(width, 1), alpha=1.0)
    return LoraFile(path=f"/loras/{name}", modules={"blocks.0.self_attn.q": module}, style="official", metadata={})


def graph(
    lora_high="cat_high_noise.safetensors", lora_low="cat_low_noise.safetensors", strength=1.0, models=(HIGH, LOW)
):
    """Two experts with a LoRA each, as the API takes it."""
    found = {}
    for number, (model, file) in enumerate(zip(models, (lora_high, lora_low), strict=True)):
        found[f"{number}1"] = {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": "default"}}
        inputs = {"lora_name": f"wan\\{file}", "strength_model": strength, "model": [f"{number}1", 0]}
        found[f"{number}2"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        found[f"{number}3"] = {"class_type": "ModelSamplingSD3", "inputs": {"shift": 8.0, "model": [f"{number}2", 0]}}
    return found


def saved(api):
    """The same as the page saves it, without names of widgets."""
    kinds, nodes, links = api, [], []
    for key, item in kinds.items():
        inputs, values = [], []
        for name, value in item["inputs"].items():
            if isinstance(value, list):
                links.append([len(links) + 1, int(value[0]), 0, int(key), len(inputs), "MODEL"])
                inputs.append({"name": name, "type": "MODEL", "link": len(links)})
            else:
                values.append(value)
        nodes.append(
            {"id": int(key), "type": item["class_type"], "mode": 0, "inputs": inputs, "widgets_values": values}
        )
    return {"nodes": nodes, "links": links}


def first(data, file=None):
    found = sorted(check_workflow(graph_of(data), file or lora()), key=lambda finding: finding.weight)
    return found[0] if found else None


@pytest.mark.parametrize("form", [lambda api: api, saved])
def test_a_good_workflow_is_left_alone(form):
    data = form(graph())
    assert first(data) is None
    (use,) = uses_of(graph_of(data), "cat_high_noise.safetensors")
    assert (use.model, use.strength, use.expert, use.is_on) == (HIGH, 1.0, "high", True)


@pytest.mark.parametrize(
    ("changes", "weight", "sentence"),
    [
        ({"strength": 0.0}, Weight.NO_EFFECT, "The strength is 0 in node"),
        ({"strength": 0.1}, Weight.HINT, "which is little"),
        ({"models": (LOW, HIGH)}, Weight.WRONG, "for the high noise expert, and node"),
        ({"lora_high": "other.safetensors"}, Weight.NO_EFFECT, "does not load cat_high_noise.safetensors"),
        ({"models": ("wan2.1_t2v_1.3B_bf16.safetensors", LOW)}, Weight.NO_EFFECT, "for a 14B model"),
        ({"models": ("wan2.2_t2v_high_noise_lightx2v_4steps.safetensors", LOW)}, Weight.HINT, "distilled to few steps"),
    ],
)
@pytest.mark.parametrize("form", [lambda api: api, saved])
def test_what_goes_wrong_is_said(form, changes, weight, sentence):
    found = first(form(graph(**changes)))
    assert found.weight == weight
    assert sentence in found.sentence
    assert found.remedy


@pytest.mark.parametrize(("mode", "word"), [(2, "switched off"), (4, "bypassed")])
def test_nodes_that_are_off_are_said(mode, word):
    data = saved(graph())
    next(node for node in data["nodes"] if node["id"] == 2)["mode"] = mode
    assert f"is {word}." in first(data).sentence


def test_text_to_video_on_image_to_video_is_a_hint():
    file = lora()
    file.metadata["modelspec.architecture"] = "wan2.2-t2v-a14b/lora"
    assert first(graph(), file) is None
    found = first(graph(models=("wan2.2_i2v_high_noise_14B_fp16.safetensors", LOW)), file)
    assert found.weight == Weight.HINT
    assert "was trained for text-to-video" in found.sentence


def test_an_output_that_leads_nowhere_is_said():
    data = graph()
    del data["03"]
    assert "Nothing is connected to the output of node 02" in first(data).sentence


def test_one_file_for_both_experts_is_said():
    data = graph("cat.safetensors", "cat.safetensors")
    assert first(data, lora("cat.safetensors")).sentence == "Both experts are given this one file."
    assert "puts it on the low noise one" in first(graph(lora_low="cat_high_noise.safetensors")).sentence


def test_one_file_that_was_trained_through_both_belongs_on_both():
    shared = replace(lora("cat.safetensors"), metadata={"wantrain.experts": "high,low"})
    assert first(graph("cat.safetensors", "cat.safetensors"), shared) is None
    alone = first(graph("cat.safetensors", "dog.safetensors"), shared)
    assert alone.sentence == "The LoRA was trained through both experts, and the low noise one is not given it."


def test_the_loader_with_many_rows_is_read():
    rows = [
        {"on": False, "lora": "cat_high_noise.safetensors", "strength": 1},
        "",
        {"on": True, "lora": "b", "strength": 0},
    ]
    node = {"id": 5, "type": "Power Lora Loader (rgthree)", "mode": 0, "inputs": [], "widgets_values": rows}
    assert "is switched off" in first({"nodes": [node], "links": []}).sentence


@pytest.mark.parametrize("form", ["saved", "api"])
@pytest.mark.parametrize(("active", "said"), [(False, "is switched off"), (True, "The strength is 0 in node 5")])
def test_lora_managers_loader_is_read(form, active, said):
    rows = [{"name": "dog", "strength": 1, "active": True}, {"name": "cat_high_noise", "strength": 0, "active": active}]
    kind, text = "Lora Loader (LoraManager)", "<lora:dog:1> <lora:cat_high_noise:0>"
    if form == "saved":
        node = {"id": 5, "type": kind, "mode": 0, "inputs": [], "widgets_values": [text, rows]}
        data = {"nodes": [node], "links": []}
    else:
        data = {"5": {"class_type": kind, "inputs": {"text": text, "loras": {"__value__": rows}}}}
    assert said in first(data).sentence


@pytest.mark.parametrize(("switch", "said"), [("Off", "is switched off"), ("On", "The strength is 0 in node 5")])
def test_a_stack_with_numbered_rows_is_read(switch, said):
    values = {"switch_1": "On", "lora_name_1": "dog.safetensors", "model_weight_1": 1.0}
    values |= {"switch_2": switch, "lora_name_2": "cat_high_noise.safetensors", "model_weight_2": 0.0}
    assert said in first({"5": {"class_type": "CR LoRA Stack", "inputs": values}}).sentence


def test_a_strength_that_comes_over_a_wire_is_not_what_the_widget_says():
    data = saved(graph(strength=0.0))
    loaders = [node for node in data["nodes"] if node["type"] == "LoraLoaderModelOnly"]
    for number, node in enumerate(loaders, 90):
        data["nodes"].append({"id": number, "type": "PrimitiveFloat", "inputs": [], "widgets_values": [1.0]})
        data["links"].append([number, number, 0, node["id"], len(node["inputs"]), "FLOAT"])
        node["inputs"].append({"name": "strength_model", "link": number, "widget": {"name": "strength_model"}})
    assert first(data) is None
    (use,) = uses_of(graph_of(data), "cat_high_noise.safetensors")
    assert (use.strength, use.model) == (None, HIGH)


@pytest.fixture(scope="module")
def template():
    folder = files("comfyui_workflow_templates_json")
    return json.loads(Path(str(folder / "templates" / "video_wan2_2_14B_t2v.json")).read_text(encoding="utf-8"))


def test_the_hosts_own_template_with_its_subgraph(template, tmp_path):
    """Its distilled LoRAs stand in a subgraph; one is given the user's file in their place."""
    name = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
    found = graph_of(template)
    (use,) = uses_of(found, name)
    assert (use.model, use.expert, use.strength) == (HIGH, "high", pytest.approx(1.0))
    changed = json.loads(json.dumps(template).replace(name, "cat_high_noise.safetensors"))
    path = tmp_path / "w.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert check_workflow(read_graph(path), lora()) == []
    off = copy.deepcopy(changed)
    next(node for node in off["nodes"] if node["type"].count("-") == 4)["mode"] = 4
    assert "is bypassed" in first(off).sentence


@pytest.mark.parametrize("data", [5, [], {}, {"a": 1}, {"nodes": [5]}, {"nodes": [{"id": 1}], "links": []}])
def test_what_is_no_workflow_is_one_sentence(data):
    with pytest.raises(ConfigError, match="workflow"):
        graph_of(data)


def test_a_subgraph_in_itself_is_refused():
    inner = {"id": "s", "nodes": [{"id": 1, "type": "s", "inputs": []}], "links": []}
    data = {"nodes": [{"id": 1, "type": "s", "inputs": []}], "links": [], "definitions": {"subgraphs": [inner]}}
    with pytest.raises(ConfigError, match="damaged workflow"):
        graph_of(data)


def test_subgraphs_that_hold_each_other_many_times_are_refused():
    """100 to the power of 7 places, in a file of a few kB."""

    def level(inner):
        return [{"id": number, "type": inner, "inputs": []} for number in range(100)]

    subgraphs = [{"id": f"s{deep}", "nodes": level(f"s{deep + 1}"), "links": []} for deep in range(7)]
    data = {"nodes": level("s0"), "links": [], "definitions": {"subgraphs": subgraphs}}
    with pytest.raises(ConfigError, match="damaged workflow"):
        graph_of(data)


def test_a_subgraph_between_the_model_and_the_lora():
    """The model comes in through the subgraph's input, and goes out through its output."""
    inner = {
        "id": "s",
        "nodes": [{
            "id": 7, "type": "LoraLoaderModelOnly", "inputs": [{"name": "model", "link": 1}],
            "widgets_values": ["cat_high_noise.safetensors", 1.0],
        }],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0},
            {"id": 2, "origin_id": 7, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        ],
    }  # fmt: skip
    nodes = [
        {"id": 1, "type": "UNETLoader", "inputs": [], "widgets_values": [LOW, "default"]},
        {"id": 2, "type": "s", "inputs": [{"name": "model", "link": 5}]},
        {"id": 3, "type": "KSampler", "inputs": [{"name": "model", "link": 6}], "widgets_values": []},
    ]
    data = {
        "nodes": nodes,
        "links": [[5, 1, 0, 2, 0, "MODEL"], [6, 2, 0, 3, 0, "MODEL"]],
        "definitions": {"subgraphs": [inner]},
    }
    assert "puts it on the low noise one" in first(data).sentence
