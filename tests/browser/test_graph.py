"""What a person sees of the graph: templates that open readable, nodes that fold, values that stay."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from wan_train.tests.browser.desk import APP, Desk, template

TEMPLATES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "example_workflows").glob("*.json"))
LEGIBLE = 0.8  # zoom at which a title has 11 pixels and a second heading in a note 10 or more
# Boxes [left, top, width, height] as they are drawn: in Nodes 2.0 with the button below a node.
BOXES = f"""() => {{
  const {{ ds }} = {APP}.canvas;
  const drawn = (node) => {{
    const element = document.querySelector(`[data-node-id="${{node.id}}"]`);
    if (!element) return [...node.boundingRect];
    const box = element.getBoundingClientRect();
    const canvas = {APP}.canvas.canvas.getBoundingClientRect();
    return [(box.left - canvas.left) / ds.scale - ds.offset[0], (box.top - canvas.top) / ds.scale - ds.offset[1],
      box.width / ds.scale, box.height / ds.scale];
  }};
  return {APP}.rootGraph.nodes.map((node) => [`${{node.type}} ${{node.id}}`, drawn(node)]);
}}"""
# Of each heading and paragraph in a note: how large its letters are, in pixels of the graph.
LETTERS = """() => [...document.querySelectorAll(".tiptap > *, .comfy-markdown-content > *")]
  .filter((part) => part.textContent && part.checkVisibility())
  .map((part) => [part.textContent, Number.parseFloat(getComputedStyle(part).fontSize)])"""
GROUPS = f"() => {APP}.rootGraph.groups.map((group) => [group.title, [...group._bounding]])"
PREVIEWS = f"""() => {{
  for (const node of {APP}.rootGraph.nodes.filter((found) => found.type === "TrainLoRAStage")) {{
    const chart = node.widgets.find((widget) => widget.name === "loss_curve").element;
    chart.querySelector(".wan-train-previews");
    const stage = node.widgets.find((widget) => widget.name === "stage").value.split(" ")[0];
    const name = node.widgets.find((widget) => widget.name === "lora_name").value;
    const detail = {{ node_id: String(node.id), run: `${{name}}_${{stage}}`, token: "", name, stage, steps: 40,
      state: "training", line: "", losses: [[1, 0.5], [2, 0.4]], previews: [[2, "step2.webp"]] }};
    window.comfyAPI.api.api.dispatchEvent(new CustomEvent("wan_train.update", {{ detail }}));
  }}
}}"""
VALUES = "(id) => nodeOf(id).widgets.filter((one) => one.serialize !== false).map((one) => [one.name, one.value])"
HEIGHT = "(id) => nodeOf(id).size[1]"
SHOWN = "(id) => nodeOf(id).widgets.filter((one) => !one.hidden).map((one) => one.name)"
PART = "(id) => nodeOf(id).widgets.find((one) => one.name === 'show_optimizer')"
LABELS = """(id) => nodeOf(id).widgets.filter((one) => one.name.startsWith("show_") && one.name !== "show_advanced")
  .map((one) => one.label.replace(/^[▸▾] | \\(\\d+\\)$/g, ""))"""
# Of a node in Nodes 2.0: pixels of its body below its last widget.
BLANK = f"""(id) => {{
  const body = document.querySelector(`[data-node-id="${{id}}"] [data-testid^="node-body"]`);
  const widgets = body.querySelector('[data-testid="node-widgets"]').children;
  const ends = [...widgets].map((one) => one.getBoundingClientRect().bottom);
  return (body.getBoundingClientRect().bottom - Math.max(...ends)) / {APP}.canvas.ds.scale;
}}"""
FOLD = "(id) => nodeOf(id).widgets.find((one) => one.name === 'show_advanced')"


def overlap(one: list[float], two: list[float]) -> bool:
    return all(one[i] < two[i] + two[i + 2] - 1 and two[i] < one[i] + one[i + 2] - 1 for i in (0, 1))


def within(inner: list[float], outer: list[float]) -> bool:
    return all(
        outer[i] - 1 <= inner[i] and inner[i] + inner[i + 2] <= outer[i] + outer[i + 2] + 1 for i in (0, 1)
    )  # fmt: skip


@pytest.mark.grid(3)
@pytest.mark.renderer("canvas", "vue")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_readable(desk: Desk, name: str):
    ui = template(name)
    # As ComfyUI's window of templates opens it.
    desk.page.evaluate(
        f"async ([ui, name]) => {APP}.loadGraphData(ui, true, true, name, {{ openSource: 'template' }})", [ui, name]
    )
    desk.page.wait_for_function(f"({LETTERS})().length > 0")
    scale, offset = desk.still(f"() => [{APP}.canvas.ds.scale, [...{APP}.canvas.ds.offset]]")
    assert scale >= LEGIBLE
    assert desk.evaluate(f"() => {APP}.rootGraph.nodes.every((node) => node.type !== 'LossGraphNode')")
    assert "wan_train_opens_at_ds" not in desk.workflow()["extra"]  # saved, it opens as it was left
    note = next(node for node in ui["nodes"] if node["type"] == "MarkdownNote")
    assert (note["pos"][0] + offset[0]) * scale > 60  # right of the page's side bar, and below its tabs
    assert (note["pos"][1] + offset[1]) * scale > 100

    letters: list[tuple[str, float]] = desk.still(LETTERS)
    assert letters
    assert [text for text, pixels in letters if pixels * scale < 10] == []

    desk.evaluate(PREVIEWS)
    desk.fit()
    boxes: list[tuple[str, list[float]]] = desk.still(BOXES)
    for (first, one), (second, two) in itertools.combinations(boxes, 2):
        assert not overlap(one, two), f"{first} {one} and {second} {two}"
    groups: list[Any] = [box for _, box in desk.evaluate(GROUPS)]
    for kind, box in boxes:
        if kind.startswith("MarkdownNote"):
            assert not any(overlap(box, group) for group in groups), (kind, box, groups)
        else:
            assert any(within(box, group) for group in groups), (kind, box, groups)
    desk.complaints.clear()  # the pictures and the runs that were made up are not there


@pytest.mark.renderer("canvas", "vue")
def test_advanced_inputs_fold_and_keep_their_values(desk: Desk):
    ui = template("wan2.1_t2v_1.3b_lora")
    desk.load(ui)
    train = next(node["id"] for node in ui["nodes"] if node["type"] == "TrainLoRAStage")
    saved = desk.workflow()
    folded, height, before = (desk.evaluate(what, train) for what in (SHOWN, HEIGHT, VALUES))
    assert len(folded) < 12
    assert "weight_decay" not in folded
    assert [value for _, value in before] == next(n for n in saved["nodes"] if n["id"] == train)["widgets_values"]

    if desk.modern:  # the host's own button
        desk.look_at(train)
        desk.page.locator(f'[data-node-id="{train}"]').get_by_test_id("advanced-inputs-button").click()
        desk.page.wait_for_function("(id) => nodeOf(id).showAdvanced === true", arg=train)
        node = desk.page.locator(f'[data-node-id="{train}"]')
        parts = node.get_by_role("button", name=re.compile("[▸▾]"))
        parts.filter(has_text="Optimizer").click()
        node.get_by_text("weight_decay", exact=True).first.wait_for()
        assert desk.evaluate(LABELS, train) == [
            "Noise levels and loss", "LoRA", "Optimizer", "EMA, keep what the model knows", "TREAD, rollout, CREPA",
            "Steps, checkpoints, device", "Previews", "Logs, several GPUs",
        ]  # fmt: skip
        assert node.get_by_text("timestep_sampling", exact=True).count() == 0
        parts.filter(has_text="Previews").click()
        node.get_by_text("preview_steps", exact=True).first.wait_for()
        assert node.get_by_text("weight_decay", exact=True).count() == 0
        assert dict(desk.evaluate(VALUES, train)) == dict(before)
        return
    label = desk.evaluate(f"(id) => ({FOLD})(id).label", train)
    hidden = len(before) - sum(name in dict(before) for name in folded)  # not counted: buttons and the chart
    assert label == f"Show advanced ({hidden})"
    desk.evaluate(f"(id) => ({FOLD})(id).callback()", train)
    assert "weight_decay" not in desk.evaluate(SHOWN, train)  # there are buttons for parts of the inputs
    desk.evaluate(f"(id) => ({PART})(id).callback()", train)
    shown = desk.evaluate(SHOWN, train)
    assert {"weight_decay", "lr_schedule"} <= set(shown)
    assert "timestep_sampling" not in shown
    assert desk.evaluate(HEIGHT, train) == pytest.approx(height + 24 * (len(shown) - len(folded)), abs=100)
    desk.set_widget(train, "weight_decay", 0.25)
    desk.load(desk.workflow())
    assert "weight_decay" in desk.evaluate(SHOWN, train)  # remembered in the workflow
    desk.evaluate(f"(id) => ({FOLD})(id).callback()", train)
    assert desk.evaluate(HEIGHT, train) == pytest.approx(height, abs=2)
    assert dict(desk.evaluate(VALUES, train)) == {**dict(before), "weight_decay": 0.25}
    prompt = desk.evaluate(f"async () => (await {APP}.graphToPrompt()).output")
    assert prompt[str(train)]["inputs"]["weight_decay"] == 0.25
    assert "show_advanced" not in prompt[str(train)]["inputs"]


@pytest.mark.renderer("canvas", "vue")
def test_a_folded_input_with_a_wire_stays_and_an_old_height_is_cut(desk: Desk):
    ui = template("wan2.1_t2v_1.3b_lora")
    train = next(node for node in ui["nodes"] if node["type"] == "TrainLoRAStage")
    fitting = train["size"][1]
    train["size"][1] = fitting + 24 * 69  # as a version saved it that showed them all
    desk.load(ui)
    assert desk.evaluate(HEIGHT, train["id"]) <= fitting
    if desk.modern:
        desk.page.wait_for_function(f"(id) => ({BLANK})(id) < 48", arg=train["id"])
    desk.evaluate(
        f"""(id) => {{
          const number = LiteGraph.createNode("PrimitiveFloat");
          {APP}.rootGraph.add(number);
          number.connect(0, nodeOf(id), nodeOf(id).findInputSlot("weight_decay"));
        }}""",
        train["id"],
    )
    assert "weight_decay" in desk.evaluate(SHOWN, train["id"])
