"""From a template to the finished pair, with the page loaded anew and the template opened again on the way."""

import re

import pytest
from wan_train.tests.browser.desk import NOTES, REPORT, Desk, template
from wan_train.tests.browser.test_training import run_of, training

SHORT = {"steps": 30, "checkpoint_every": 10, "preview_every": 15}


@pytest.mark.renderer("canvas")
def test_a_template_is_run_to_the_end_with_a_reload_in_between(desk: Desk):
    ui = template("demo")
    name = f"demo_{'vue' if desk.modern else 'canvas'}"
    desk.load(ui, "demo")
    high, low = (node["id"] for node in ui["nodes"] if node["type"] == "TrainLoRAStage")
    pair, data = (
        next(n["id"] for n in ui["nodes"] if n["type"] == kind) for kind in ("MergeStages", "DatasetFromFolder")
    )
    for train in (high, low):
        for widget, value in {**SHORT, "lora_name": name, "seed": 81 if desk.modern else 82}.items():
            desk.set_widget(train, widget, value)
    desk.queue()
    begun = "(ids) => ids.some((id) => partOf(id, '.wan-train-head').textContent.includes('of 30'))"
    desk.page.wait_for_function(begun, arg=[high, low], timeout=400_000)  # ComfyUI chooses which is first
    desk.open()  # the page brings its workflow back
    desk.page.wait_for_function(begun, arg=[high, low])
    for train in (high, low):
        desk.until(train, "finished", timeout=400)
    assert f"{name}_low_noise" in desk.until(pair, f"{name}_high_noise", REPORT)
    runs = [run_of(desk, train) for train in (high, low)]
    assert None not in runs
    report = desk.text(data, REPORT)
    assert "buckets: " in report

    saved = desk.workflow()
    desk.load_prompt(training("another", steps=1), "another")
    desk.load(saved, "demo again")  # as a file that is opened again
    for train in (high, low):
        assert "step 30 of 30" in desk.until(train, "finished")
        assert f"run {name}, begun " in desk.until(train, "begun", NOTES)
    desk.page.wait_for_function("(id) => partOf(id, '.wan-train-previews img')?.naturalWidth > 0", arg=high)
    assert desk.text(data, REPORT) == report
    assert f"{name}_high_noise" in desk.text(pair, REPORT)

    smoothed = re.search(r"smoothed loss \d+\.\d+", desk.text(high))
    assert smoothed is not None
    phone = desk.page.context.new_page()
    phone.goto(f"{desk.host.url}/wan_train/watch#{runs[0]}")
    phone.locator("#losses").filter(has_text=smoothed[0]).wait_for()  # the same number there
    phone.close()


@pytest.mark.renderer("vue")
def test_a_warning_stands_on_the_node_before_its_first_step(desk: Desk):
    """And no warning that nobody asked for."""
    name = f"warned_{'vue' if desk.modern else 'canvas'}"  # else the other renderer's run, with its warning, is shown first
    ids = desk.load_prompt(training(name, warmup_steps=4000, seed=83 if desk.modern else 88))
    train = ids["high_train"]
    desk.evaluate(
        """(id) => {
          window.wanSeen = [];
          window.comfyAPI.api.api.addEventListener("wan_train.update", () => window.wanSeen.push(
            [partOf(id, ".wan-train-head").textContent, partOf(id, ".wan-train-notes").textContent]));
        }""",
        train,
    )
    desk.queue()
    desk.until(train, "warmup_steps (4000) is not shorter than the run (3,000 steps)", NOTES)
    desk.until(train, "step 1")
    before = [notes for head, notes in desk.evaluate("() => window.wanSeen") if "step " not in head]
    assert any("warmup_steps (4000)" in notes for notes in before)
    warnings = [line for line in desk.text(train, NOTES).splitlines() if line.startswith("- ")]
    assert len(warnings) == 1, warnings


@pytest.mark.renderer("canvas")
def test_a_second_workflow_waits_and_each_shows_its_own_run(desk: Desk):
    name = f"first_{'vue' if desk.modern else 'canvas'}"
    ids = desk.load_prompt(training(name, steps=2000, seed=84 if desk.modern else 85), "first")
    train = ids["high_train"]
    desk.queue()
    desk.until(train, " left")
    first = desk.workflow()
    desk.load_prompt(training(f"{name}_second", steps=4, seed=86 if desk.modern else 87), "second")
    desk.queue()
    desk.page.wait_for_function("async () => (await (await fetch('/queue')).json()).queue_pending.length === 1")
    assert desk.text(train).startswith("The loss is drawn here")
    desk.load(first, "first again")
    desk.look_at(train)
    desk.until(train, " left")
    desk.press(train, "stop")
    desk.until(train, "stopped")
    assert run_of(desk, train).startswith(f"{name}_high")
    desk.page.wait_for_function(
        "async () => Object.values(await (await fetch('/queue')).json()).every((one) => !one.length)", timeout=240_000
    )
    assert f"run {name}, begun " in desk.text(train, NOTES)  # the second one's came and went
    assert "stopped" in desk.text(train)
