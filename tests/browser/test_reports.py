"""What nodes have reported is there for whoever opens their workflow later, in whichever page."""

import pytest
from playwright.sync_api import Browser
from wan_train.tests.browser.desk import REPORT, Desk
from wan_train.tests.browser.test_identity import COPY
from wan_train.tests.browser.test_training import training

EMPTY = "The report appears here"


@pytest.mark.grid(5, "the page")
@pytest.mark.renderer("canvas")
def test_another_page_shows_the_reports_of_a_saved_workflow(desk: Desk, browser: Browser):
    name = f"told_{'vue' if desk.modern else 'canvas'}"
    ids = desk.load_prompt(training(name, steps=2))
    shown = {"data": "2 clips, 1 image", "latents": "in the cache", "text": "in the cache", "high_dit": "blocks"}
    shown["pair"] = f"{name}_high_noise"
    desk.queue()
    # In whatever order: a node that the host has in its cache may be told of after the others.
    told = {key: desk.until(ids[key], words, REPORT) for key, words in shown.items()}
    copy = desk.evaluate(COPY, ids["pair"])
    desk.set_widget(ids["latents"], "condition_on", "first frame")
    saved = desk.workflow()
    desk.load_prompt(training("another", steps=1), "another")

    second = Desk(browser, desk.host, modern=desk.modern)  # a browser that has never seen it
    try:
        second.load(saved, "saved")
        for key in shown:
            if key == "latents":
                continue
            second.until(ids[key], told[key], REPORT)
        assert second.text(copy, REPORT).startswith(EMPTY)
        assert second.text(ids["latents"], REPORT).startswith(EMPTY)  # it is of other values
        assert second.complaints == []
    finally:
        second.close()


@pytest.mark.grid(5, "the page")
@pytest.mark.renderer("vue")
def test_a_node_that_the_host_does_not_execute_again_has_its_report_in_another_page_too(desk: Desk, browser: Browser):
    name = f"kept_{'vue' if desk.modern else 'canvas'}"
    prompt = training(name, steps=2)
    ids = desk.load_prompt(prompt, "first")
    desk.queue()
    told = desk.until(ids["pair"], f"{name}_high_noise", REPORT)
    desk.load_prompt(prompt, "anew")  # as a template that is opened again: its nodes are others
    desk.queue()
    desk.until(ids["pair"], told, REPORT)
    saved = desk.workflow()
    second = Desk(browser, desk.host, modern=desk.modern)
    try:
        second.load(saved, "saved")
        second.until(ids["pair"], told, REPORT)
        second.until(ids["data"], "2 clips, 1 image", REPORT)
    finally:
        second.close()
