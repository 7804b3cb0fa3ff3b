"""From Run to the finished LoRA, with every button of a run pressed on the way, and the page loaded again in between."""

from typing import Any

import pytest
from wan_train.core.train.events import EventReader
from wan_train.tests.browser.desk import ANSWER, NOTES, Desk, until
from wan_train.tests.host.graphs import Json, node, one_stage


def training(name: str, **options: Any) -> Json:
    """A training with previews, and the node that makes the LoRA's file of it."""
    train = {"steps": 3000, "checkpoint_every": 1000, "seed": 61, **options}
    prompt = one_stage(lora_name=name, preview_every=2000, preview_steps=2, vae=["vae", 0], **train)
    prompt["pair"] = node("MergeStages", high=["high_train", 0])
    return prompt


def events(desk: Desk, run: str) -> list[Json]:
    """What its diary says so far, of whose last line a part may be there."""
    return EventReader(desk.host.base / "output" / "wan_train" / "runs" / run / "events.jsonl").read()


def run_of(desk: Desk, train: int | str) -> str:
    return desk.evaluate("(id) => nodeOf(id).properties.wan_run", train)


@pytest.mark.renderer("canvas")
def test_every_button_of_a_run_does_what_it_says(desk: Desk):
    name = f"pressed_{'vue' if desk.modern else 'canvas'}"
    ids = desk.load_prompt(training(name, steps=100_000))  # goes on until it is told to end
    train = ids["high_train"]
    assert desk.buttons(train) == ["Check"]
    desk.queue()
    head = desk.until(train, "step ")
    assert "smoothed loss" in head  # each number says what it is
    run = run_of(desk, train)
    notes = desk.text(train, NOTES)
    assert f"run {name}, begun " in notes
    assert f"in {run}" in notes, (run, notes)
    desk.look_at(train)
    assert desk.buttons(train) == ["Stop", "Stop and use", "Pause", "Save now", "Preview now"]

    desk.press(train, "save")
    until(lambda: [e for e in events(desk, run) if e["event"] == "checkpoint"], "a checkpoint")
    desk.press(train, "preview")
    desk.page.wait_for_function("(id) => partOf(id, '.wan-train-previews img')?.naturalWidth > 0", arg=train)

    desk.press(train, "pause")
    assert "paused after step" in desk.until(train, "the GPU's memory is free")
    assert desk.buttons(train) == ["Stop", "Stop and use", "Go on"]
    desk.open()
    desk.until(train, "paused after step")  # the page brings its last workflow back, and the run its state
    desk.look_at(train)
    desk.press(train, "go_on")
    desk.until(train, " left")
    until(lambda: events(desk, run)[-1]["event"] == "step", "a step")

    desk.press(train, "use")
    pair = desk.until(ids["pair"], "high", ".wan-train-report")
    assert name in pair
    said = desk.until(train, "is used", NOTES)
    assert said.startswith("the LoRA of step ")
    assert desk.buttons(train) == ["Check"]
    assert desk.text(train, ANSWER) == ""


@pytest.mark.renderer("vue")
def test_a_stopped_run_goes_on_and_its_curve_stays(desk: Desk):
    name = f"stopped_{'vue' if desk.modern else 'canvas'}"
    ids = desk.load_prompt(training(name, steps=60, seed=62, checkpoint_every=20))
    train = ids["high_train"]
    desk.set_widget(train, "steps", 4000)
    desk.queue()
    desk.until(train, " left")
    desk.look_at(train)
    desk.press(train, "stop")
    desk.until(train, "stopped")
    assert "press Run to go on" in desk.until(train, "stopped at step", NOTES)
    run = run_of(desk, train)
    done = max(e["step"] for e in events(desk, run) if e["event"] == "step")
    desk.set_widget(train, "steps", done + 5)
    desk.queue()
    desk.until(train, "finished")
    starts = [e["step"] for e in events(desk, run_of(desk, train)) if e["event"] == "start"]
    assert starts[-1] == done

    desk.open()
    assert f"step {done + 5} of {done + 5}" in desk.until(train, "finished")
    points = desk.evaluate("(id) => partOf(id, '.wan-train-smooth')?.getAttribute('d').length", train)
    assert points > 50
    desk.queue()  # everything is cached: nothing is sent to the node
    desk.page.wait_for_timeout(1500)
    assert f"step {done + 5} of {done + 5}" in desk.until(train, "finished")
