"""Which run a node shows: through renaming, copies, undo, other tabs and workflows, subgraphs and bypass."""

import re

import pytest
from wan_train.tests.browser.desk import APP, Desk
from wan_train.tests.browser.test_training import run_of, training

EMPTY = "The loss is drawn here"
COPY = f"""(id) => {{
  const {{ canvas }} = {APP};
  canvas.deselectAll();
  canvas.select(nodeOf(id));
  const before = new Set({APP}.rootGraph.nodes.map((node) => node.id));
  canvas.copyToClipboard();
  canvas.pasteFromClipboard();
  return {APP}.rootGraph.nodes.find((node) => !before.has(node.id)).id;
}}"""
INTO_SUBGRAPH = f"""(id) => {{
  const {{ node }} = {APP}.rootGraph.convertToSubgraph(new Set([nodeOf(id)]));
  return `${{node.id}}:${{node.subgraph.nodes.find((found) => found.comfyClass === "TrainLoRAStage").id}}`;
}}"""


def step(desk: Desk, node: int | str) -> int:
    found = re.search(r"step (\d+) of", desk.text(node))
    return int(found[1]) if found else 0


def moves_on(desk: Desk, node: int | str) -> None:
    """The chart goes on: a later step than now comes."""
    before = step(desk, node)
    desk.page.wait_for_function(
        "([id, before]) => Number(/step (\\d+) of/.exec(partOf(id, '.wan-train-head').textContent)?.[1]) > before",
        arg=[node, before],
    )


@pytest.mark.renderer("vue")
def test_a_run_is_shown_by_its_node_alone(desk: Desk, browser):
    renderer = "vue" if desk.modern else "canvas"
    ids = desk.load_prompt(training(f"own_{renderer}", seed=63, steps=30000))  # goes on as long as it is looked at
    train = ids["high_train"]
    desk.queue()
    desk.until(train, " left")
    run = run_of(desk, train)

    desk.set_widget(train, "lora_name", "renamed")
    moves_on(desk, train)
    copy = desk.evaluate(COPY, train)
    moves_on(desk, train)
    assert EMPTY in desk.text(copy)
    assert desk.evaluate("(id) => nodeOf(id).properties.wan_run ?? null", copy) is None

    desk.remember()
    desk.set_widget(train, "rank", 8)
    desk.page.keyboard.press("Escape")
    desk.evaluate(f"() => {APP}.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    assert desk.evaluate("(id) => nodeOf(id).widgets.find((one) => one.name === 'rank').value", train) == 4
    desk.until(train, "step ")
    moves_on(desk, train)

    second = Desk(browser, desk.host, modern=desk.modern)
    try:
        second.load(desk.workflow(), "the same")
        second.until(train, "step ")
        moves_on(second, train)
        second.load_prompt(training("own", seed=64), "another")  # whose name the other's begins with, with the same ids
        second.queue()
        second.page.wait_for_timeout(1500)
        assert EMPTY in second.text(train)
        assert run_of(second, train) is None
        assert second.complaints == []
    finally:
        second.close()
    moves_on(desk, train)
    assert run_of(desk, train) == run


@pytest.mark.renderer("canvas")
def test_a_training_in_a_subgraph_shows_its_run(desk: Desk):
    renderer = "vue" if desk.modern else "canvas"
    ids = desk.load_prompt(training(f"inner_{renderer}", seed=65))
    inner = desk.evaluate(INTO_SUBGRAPH, ids["high_train"])
    desk.queue()
    desk.until(inner, " left")
    moves_on(desk, inner)
    assert "begun" in desk.text(inner, ".wan-train-notes")


@pytest.mark.renderer("canvas")
def test_a_bypassed_training_is_no_error_of_the_page(desk: Desk):
    ids = desk.load_prompt(training("bypassed", seed=66))
    desk.evaluate("(id) => { nodeOf(id).mode = 4; }", ids["high_train"])
    desk.queue()
    desk.until(ids["pair"], "nothing is connected to high or low", ".wan-train-report")
    assert EMPTY in desk.text(ids["high_train"])
