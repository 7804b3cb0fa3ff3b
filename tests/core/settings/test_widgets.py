"""Widgets are made from the options: as version 0.1.0 had them, with new ones behind, and old values mean the same."""

import json
import re
from pathlib import Path

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.recipe.recipe import Recipe, widgets_of
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.option import all_options
from wan_train.core.settings.stage import settings_from_names

PACK = Path(__file__).resolve().parents[3]
OLD = json.loads((Path(__file__).parent / "widgets_of_0.1.0.json").read_text(encoding="utf-8"))
# What a node has beside its options: wires, lists of files, the stage, the name.
OTHERS = {
    "DatasetFromFolder": {"folder"},
    "CacheLatents": {"dataset", "vae", "clip_vision"},
    "LoadWanDiT": {"model_name", "recovery_adapter"},
    "TrainLoRAStage": {"dit", "latents", "text", "stage", "lora_name", "vae", "other_dit"},
}
OF_HOST = ("folder", "model_name", "recovery_adapter", "device")  # what they offer is the machine's
SWITCHES = ("offload_inputs", "split_blocks", "offload_optimizer")
NUMBERS = ("streamed_blocks", "keep_attention", "keep_linears", "mapped_blocks", "ffn_pieces")
PLANNED = {"checkpointing", "stream_from", *SWITCHES, *NUMBERS}


@pytest.fixture(scope="module")
def nodes(comfy):
    from wan_train.nodes import data_nodes, model_nodes, train_nodes

    found = (*data_nodes.NODES, *model_nodes.NODES, *train_nodes.NODES)
    return {node.define_schema().node_id: node for node in found}


def schema_of(node):
    """What GET /object_info says of the inputs, without tooltips and what depends on the machine."""
    found = node.GET_NODE_INFO_V1()["input"]
    shown = {}
    for kind in ("required", "optional"):
        shown[kind] = {}
        for name, (io_type, *rest) in found.get(kind, {}).items():
            facts = dict(rest[0]) if rest else {}
            facts.pop("tooltip", None)
            facts.pop("wan_train_part", None)  # for the page alone
            if name in OF_HOST:
                facts.pop("options", None)
            shown[kind][name] = [io_type, facts]
    return shown


@pytest.mark.parametrize("node", OLD)
@pytest.mark.parametrize("kind", ["required", "optional"])
def test_inputs_stand_where_they_stood_and_are_what_they_were(nodes, node, kind):
    old, new = OLD[node][kind], schema_of(nodes[node])[kind]
    assert list(new)[: len(old)] == list(old)
    for name in old.keys() - PLANNED:
        choices = old[name][1].get("options", [])
        new[name][1].get("options", [])[len(choices) :] = []  # methods that came later stand behind
        if name == "alpha":  # 0 was no value then
            assert new[name][1]["min"] <= old[name][1]["min"]
            new[name][1]["min"] = old[name][1]["min"]
        if new[name][1].get("max", 0) > old[name][1].get("max", 0):
            new[name][1]["max"] = old[name][1]["max"]  # a range may grow: all that was allowed is
        assert new[name] == old[name], name
    if kind == "required":
        assert len(new) == len(old), "a new input is optional, so that prompts from before it stay valid"


@pytest.mark.parametrize("node", OLD)
def test_every_widget_is_an_option_and_every_option_of_a_node_is_on_it(nodes, node):
    names = [item.id for item in nodes[node].define_schema().inputs]
    assert set(names) - OTHERS[node] == {widget.name for _, widget in widgets_of(node)}
    places = [widget.place for _, widget in widgets_of(node)]
    assert places == sorted(set(places)), "a place is one option's; a new option has one behind the others"


def test_every_option_has_help_and_every_node_with_options_is_one_of_ours():
    items = list(all_options(Recipe))
    assert not [item.place for item in items if not item.help.endswith(".") or len(item.help) > 110]
    assert {item.widget.node for item in items if item.widget} == {*OLD, "CacheT5"}  # which had none then
    labels = [item.label for item in items]
    assert len(labels) == len(set(labels)), "a name on nodes means one option"


def test_tooltips_are_the_help_of_the_options(nodes):
    for node in OLD:
        tooltips = {item.id: item.tooltip for item in nodes[node].define_schema().inputs}
        assert all(tooltips.values())
        for item, widget in widgets_of(node):
            assert tooltips[widget.name] == item.tooltip


def test_defaults_of_new_nodes_leave_memory_to_the_plan(nodes):
    inputs = {item.id: item for item in nodes["LoadWanDiT"].define_schema().inputs}
    values = {name: inputs[name].default for name in PLANNED}
    assert settings_from_names(values).memory == MemoryOptions()
    assert inputs["stream_from"].options == ["auto", "pinned memory", "pageable memory", "files"]
    assert inputs["checkpointing"].options == ["auto", "on", "off"]


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({name: OLD["LoadWanDiT"][kind][name][1]["default"] for kind in ("required", "optional")
          for name in OLD["LoadWanDiT"][kind] if name in PLANNED}, {}),
        ({"checkpointing": False}, {"checkpointing": False}),
        ({"offload_inputs": True, "split_blocks": True, "offload_optimizer": True},
         {"offload_inputs": True, "split_blocks": True, "offload_optimizer": True}),
        ({"streamed_blocks": 7, "mapped_blocks": 2, "stream_from": "pageable"},
         {"streamed_blocks": 7, "mapped_blocks": 2, "stream_from": "pageable"}),
        ({"streamed_blocks": 7, "stream_from": "mapped", "keep_attention": 3, "ffn_pieces": 4},
         {"streamed_blocks": 7, "stream_from": "mapped", "keep_attention": 3, "ffn_pieces": 4}),
    ],
)  # fmt: skip
def test_values_of_old_workflows_mean_what_they_meant(nodes, values, meant):
    from wan_train.nodes.inputs import check_inputs

    check_inputs(nodes["LoadWanDiT"], values)
    assert settings_from_names(values).memory == MemoryOptions(**meant)


def test_what_is_chosen_is_a_choice_also_where_it_equals_the_old_default():
    chosen = {
        "checkpointing": "on", "offload_inputs": "off", "split_blocks": "off", "offload_optimizer": "off",
        "stream_from": "pinned memory", "streamed_blocks": -1, "keep_attention": -1, "keep_linears": -1,
        "mapped_blocks": -1, "ffn_pieces": -1,
    }  # fmt: skip
    assert settings_from_names(chosen).memory == MemoryOptions(
        checkpointing=True, offload_inputs=False, split_blocks=False, offload_optimizer=False, stream_from="pinned",
        streamed_blocks=0, keep_attention=0, keep_linears=0, mapped_blocks=0, ffn_pieces=1,
    )  # fmt: skip


def test_the_page_writes_old_values_in_todays_words():
    script = (PACK / "web" / "old_values.js").read_text(encoding="utf-8")
    table = re.search(r"OLD_VALUES = (\{.*?\n\});", script, re.DOTALL)[1]
    listed = json.loads(re.sub(r",(\s*[\]}])", r"\1", re.sub(r"(\w+):", r'"\1":', table)))
    meant = {
        node: {
            widget.name: [[old, widget.shows(value)] for old, value in widget.old]
            for _, widget in widgets_of(node)
            if widget.old
        }
        for node in OLD
    }
    same = {(n, w, old) for n, ws in meant.items() for w, pairs in ws.items() for old, new in pairs if old == new}
    assert not same, "a value that means the same is no old one"
    assert listed == {node: widgets for node, widgets in meant.items() if widgets}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpointing": "maybe"}, "checkpointing is 'maybe': choose one of auto, on, off"),
        ({"checkpointing": 1}, "checkpointing must be a text"),
        ({"stream_from": "disk"}, "stream_from is 'disk': choose one of auto, pinned memory, pageable memory, files"),
        ({"keep_attention": -2}, "keep_attention is -2, but it must lie in -1 to 1000"),
        ({"precision": "fp7"}, "precision is 'fp7': choose one of auto, fp32"),
    ],
)
def test_other_values_are_refused_by_name(nodes, values, message):
    from wan_train.nodes.inputs import check_inputs

    with pytest.raises(ConfigError, match=message):
        check_inputs(nodes["LoadWanDiT"], values)
    if "precision" in values:  # what the host leaves to the node
        assert message.split(":")[0] in nodes["LoadWanDiT"].validate_inputs(**values)


def test_the_pages_own_widgets_have_names_of_their_own():
    """Two widgets of one name on a node: the page shows the first alone."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (PACK / "web").glob("*.js"))
    own = set(re.findall(r'addWidget\(\s*node,\s*"(\w+)"', scripts))
    assert own
    assert own & {item.widget.name for item in all_options(Recipe) if item.widget} == set()
