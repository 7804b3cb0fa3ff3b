"""The blueprint is offered by the page, opens, and trains a pair with nothing but its six inputs."""

import json
from pathlib import Path

import pytest
from wan_train.tests.browser.desk import APP, Desk

NAME = "Train a Wan LoRA"
FILE = Path(__file__).resolve().parents[2] / "subgraphs" / f"{NAME}.json"
# What is set within, as a person does who opens it: short runs of small clips.
WITHIN = {
    "DatasetFromFolder": {"width": 64, "height": 64, "num_frames": 9, "held_out": 0},
    "TrainLoRAStage": {"preview_every": 0},
    "VAELoader": {"vae_name": "wan_mini_vae.safetensors"},
}
# The miniature text encoder has a loader of its own.
OTHER_ENCODER = """(id) => {
  const { subgraph } = nodeOf(id);
  const loader = LiteGraph.createNode("WanLoadUMT5");
  subgraph.add(loader);
  loader.widgets.find((one) => one.name === "name").value = "wan_mini_umt5.safetensors";
  const text = subgraph.nodes.find((node) => node.comfyClass === "CacheT5");
  loader.connect(0, text, text.findInputSlot("clip"));
  subgraph.remove(subgraph.nodes.find((node) => node.comfyClass === "CLIPLoader"));
}"""


@pytest.mark.renderer("vue")
def test_the_page_offers_it(desk: Desk):
    offered = desk.evaluate("() => fetch('/api/global_subgraphs').then((answer) => answer.json())")
    assert NAME in {entry["name"] for entry in offered.values()}


@pytest.mark.renderer("canvas")
def test_it_trains_a_pair_with_its_six_inputs(desk: Desk):
    desk.load(json.loads(FILE.read_text(encoding="utf-8")))
    box = desk.evaluate(f"() => {APP}.rootGraph.nodes[0].id")
    inputs = desk.evaluate("(id) => nodeOf(id).inputs.map((one) => one.name)", box)
    assert inputs == ["folder", "trigger_word", "high_model", "low_model", "lora_name", "steps"]
    for name, value in {
        "folder": "input/shapes",
        "trigger_word": "shp",
        "steps": 2,
        "high_model": "wan_mini_high_noise.safetensors",
        "low_model": "wan_mini_low_noise.safetensors",
        "lora_name": f"boxed_{'vue' if desk.modern else 'canvas'}",
    }.items():
        desk.set_widget(box, name, value)
    inner = desk.evaluate("(id) => nodeOf(id).subgraph.nodes.map((node) => [node.id, node.comfyClass])", box)
    for number, kind in inner:
        for name, value in WITHIN.get(kind, {}).items():
            desk.set_widget(f"{box}:{number}", name, value)
    desk.evaluate(OTHER_ENCODER, box)
    desk.queue()
    pair = next(f"{box}:{number}" for number, kind in inner if kind == "MergeStages")
    said = desk.until(pair, "low", ".wan-train-report")
    assert "boxed_" in said
    for number in (number for number, kind in inner if kind == "TrainLoRAStage"):
        desk.until(f"{box}:{number}", "finished")
