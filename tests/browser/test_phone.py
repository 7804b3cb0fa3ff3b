"""The page for a phone, as a person uses it while a training goes on."""

import pytest
from wan_train.tests.browser.desk import Desk
from wan_train.tests.browser.test_training import events, run_of, training


@pytest.mark.grid(5, "the page")
@pytest.mark.renderer("canvas")
def test_stop_asks_first_and_then_ends_the_run_with_a_checkpoint(desk: Desk):
    name = f"phoned_{'vue' if desk.modern else 'canvas'}"
    ids = desk.load_prompt(training(name, steps=30000, seed=75 if desk.modern else 76))
    train = ids["high_train"]
    desk.queue()
    desk.until(train, " left")
    run = run_of(desk, train)
    phone = desk.page.context.new_page()
    asked: list[str] = []
    answers = [False, True]

    def answer(dialog):
        asked.append(dialog.message)
        dialog.accept() if answers.pop(0) else dialog.dismiss()

    phone.on("dialog", answer)
    phone.goto(f"{desk.host.url}/wan_train/watch#{run}")
    stop = phone.get_by_role("button", name="Stop")
    stop.click()
    assert asked[0].startswith(f"Stop {name} after step ")
    assert asked[0].endswith(" of 30000? A checkpoint is kept.")
    step = max(event["step"] for event in events(desk, run) if event["event"] == "step")
    desk.page.wait_for_function(
        "([id, step]) => Number(/step (\\d+) of/.exec(partOf(id, '.wan-train-head').textContent)?.[1]) > step",
        arg=[train, step],
    )  # it goes on
    stop.click()
    phone.locator("#state").filter(has_text="stopped").wait_for()
    assert len(asked) == 2
    assert stop.is_hidden()
    assert events(desk, run)[-1]["event"] == "stopped"
    assert [event for event in events(desk, run) if event["event"] == "checkpoint"]
    desk.until(train, "stopped")
    phone.close()
