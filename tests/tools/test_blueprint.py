"""The subgraph blueprint that the pack ships, and the tool that makes such files."""

import json
from pathlib import Path

from wan_train.tools.blueprint import INPUT, OUTPUT, Entry, Exit, blueprint
from wan_train.tools.layout import api_to_ui

FILE = Path(__file__).resolve().parents[2] / "subgraphs" / "Train a Wan LoRA.json"
INFO = {
    "Source": {
        "input": {"required": {"name": ["STRING", {"default": "a"}]}}, "input_order": {"required": ["name"]},
        "output": ["MODEL"], "output_name": ["model"], "display_name": "Source", "python_module": "nodes",
    },
    "Use": {
        "input": {"required": {"model": ["MODEL", {}], "steps": ["INT", {"default": 3, "min": 1, "max": 9}]}},
        "input_order": {"required": ["model", "steps"]},
        "output": ["LATENT"], "output_name": ["latent"], "display_name": "Use", "python_module": "nodes",
    },
}  # fmt: skip
PROMPT = {
    "1": {"class_type": "Source", "inputs": {"name": "b"}},
    "2": {"class_type": "Use", "inputs": {"model": ["1", 0], "steps": 5}},
    "3": {"class_type": "Use", "inputs": {"model": ["1", 0], "steps": 5}},
}


def check_links(definition):
    """Each link is known at both of its ends, by the same number."""
    nodes = {node["id"]: node for node in definition["nodes"]}
    for link in definition["links"]:
        source, target = link["origin_id"], link["target_id"]
        if source == INPUT:
            assert link["id"] in definition["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert link["id"] in nodes[source]["outputs"][link["origin_slot"]]["links"]
        if target == OUTPUT:
            assert definition["outputs"][link["target_slot"]]["linkIds"] == [link["id"]]
        else:
            assert nodes[target]["inputs"][link["target_slot"]]["link"] == link["id"]
    numbers = [link["id"] for link in definition["links"]]
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) <= definition["state"]["lastLinkId"]


def test_one_input_leads_to_several_nodes_and_shows_their_value():
    entries = [Entry("name", [(1, "name")]), Entry("steps", [(2, "steps"), (3, "steps")])]
    made = blueprint("Mine", api_to_ui(PROMPT, INFO), entries, [Exit("latent", 3, 0)], category="c", description="d")
    (outer,) = made["nodes"]
    (definition,) = made["definitions"]["subgraphs"]
    assert outer["type"] == definition["id"]
    assert outer["widgets_values"] == ["b", 5]
    assert [(item["name"], item["type"]) for item in outer["inputs"]] == [("name", "STRING"), ("steps", "INT")]
    assert len(definition["inputs"][1]["linkIds"]) == 2
    assert [item["type"] for item in outer["outputs"]] == ["LATENT"]
    check_links(definition)


def test_the_shipped_one_has_six_inputs_and_trains_both_experts():
    made = json.loads(FILE.read_text(encoding="utf-8"))
    (outer,) = made["nodes"]
    (definition,) = made["definitions"]["subgraphs"]
    names = ["folder", "trigger_word", "high_model", "low_model", "lora_name", "steps"]
    assert [item["name"] for item in outer["inputs"]] == [item["name"] for item in definition["inputs"]] == names
    kinds = [node["type"] for node in definition["nodes"]]
    assert kinds.count("TrainLoRAStage") == kinds.count("LoadWanDiT") == 2
    check_links(definition)
