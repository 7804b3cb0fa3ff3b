"""The sidebar's tab with all runs, as a person uses it: from the list to the workflow, to a longer run, to its deletion."""

import re

import pytest
from wan_train.tests.browser.desk import APP, Desk, until
from wan_train.tests.browser.test_training import events, run_of, training

TAB = "WanTrain runs"


def open_tab(desk: Desk) -> None:
    """Press the sidebar's button, unless its tab is open."""
    if not desk.page.locator(".wan-train-runs").count():
        desk.page.get_by_role("button", name=re.compile(TAB)).first.click()
    desk.page.locator(".wan-train-runs").wait_for()


def card(desk: Desk, run: str):
    return desk.page.locator(f".wan-train-runs li[data-run='{run}']")


def await_card(desk: Desk, run: str, words: str) -> None:
    card(desk, run).filter(has_text=words).wait_for()


@pytest.mark.grid(5, "the page")
@pytest.mark.renderer("vue")
def test_from_the_list_to_the_workflow_to_a_longer_run_to_its_deletion(desk: Desk):
    name = f"kept_{'vue' if desk.modern else 'canvas'}"
    ids = desk.load_prompt(training(name, steps=40, seed=67))
    train = ids["high_train"]
    desk.queue()
    desk.page.wait_for_function("(name) => document.title.includes(`% ${name}`)", arg=name)
    desk.until(train, "finished")
    desk.page.get_by_text(f"{name} is trained").first.wait_for()  # the toast
    run = run_of(desk, train)
    assert f"% {name}" not in desk.page.title()

    desk.load_prompt(training("another", steps=1, seed=68), "another")
    open_tab(desk)
    await_card(desk, run, "finished")
    assert card(desk, run).locator("img").evaluate("(picture) => picture.decode().then(() => picture.naturalWidth)") > 0
    desk.page.get_by_label("Search runs by name").fill(f"high {name}")
    assert desk.page.locator(".wan-train-runs li").count() == 1
    card(desk, run).get_by_role("button", name="Open").click()
    desk.page.wait_for_function(
        f"(name) => {APP}.rootGraph.nodes.some((node) => node.widgets?.some((widget) => widget.value === name))",
        arg=name,
    )
    card(desk, run).get_by_role("button", name="Extend").click()
    desk.page.get_by_label("Steps more").fill("25")
    card(desk, run).get_by_role("button", name="Train them").click()
    await_card(desk, run, "step 65 of 65")
    desk.until(train, "step 65 of 65")
    await_card(desk, run, "finished")
    assert [event["step"] for event in events(desk, run) if event["event"] == "start"] == [0, 40]

    folder = desk.host.base / "output" / "wan_train" / "runs" / run
    card(desk, run).get_by_role("button", name="Delete").click()
    assert "for good? Lost are:" in card(desk, run).locator(".wan-train-run-ask").inner_text()
    assert folder.is_dir()
    card(desk, run).get_by_role("button", name="Delete for good").click()
    card(desk, run).wait_for(state="detached")
    assert not folder.exists()
    desk.page.get_by_label("Search runs by name").fill("")
    until(lambda: f"% {name}" not in desk.page.title(), "the page's own title")
