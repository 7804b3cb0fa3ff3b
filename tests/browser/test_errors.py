"""What is wrong is said on the node that mends it, once, and before anything is encoded."""

import pytest
from wan_train.tests.browser.desk import ANSWER, APP, NOTES, REPORT, Desk, until
from wan_train.tests.browser.test_training import training
from wan_train.tests.host.graphs import changed

# How many errors the host tells of each node.
ERRORS = f"""() => {APP}.lastNodeErrors && Object.fromEntries(
  Object.entries({APP}.lastNodeErrors).map(([id, found]) => [id, found.errors.length]))"""


@pytest.mark.renderer("vue")
def test_one_missing_folder_is_one_error(desk: Desk):
    ids = desk.load_prompt(changed(training("lost"), "data", folder="input/gone"))
    desk.queue()
    until(lambda: desk.evaluate(ERRORS), "an error")
    assert desk.evaluate(ERRORS) == {str(ids["data"]): 1}
    desk.page.keyboard.press("Escape")


@pytest.mark.renderer("canvas")
def test_the_node_that_fails_says_why_in_the_place_of_its_report(desk: Desk):
    prompt = changed(training("mixed"), "high_dit", model_name="wan_mini_low_noise.safetensors")
    ids = desk.load_prompt(prompt)
    desk.queue()
    said = desk.until(ids["high_train"], "low noise expert by its name")
    assert said.startswith("failed: ")
    assert "blocks" in desk.text(ids["high_dit"], REPORT)  # the others keep what they have told
    desk.page.keyboard.press("Escape")
    desk.set_widget(ids["high_dit"], "model_name", "wan_mini_high_noise.safetensors")
    desk.queue()
    desk.until(ids["high_train"], "step ")


@pytest.mark.renderer("vue")
def test_what_is_not_encoded_in_vain_is_said_on_the_training_and_goes_when_it_is_mended(desk: Desk):
    side = 112 if desk.modern else 96  # that nothing is encoded at
    prompt = changed(training("in_vain"), "data", width=side, height=side)
    # The pieces are of this test alone: of a node that is in the host's cache nothing is told where a later one fails.
    ids = desk.load_prompt(changed(prompt, "high_dit", model_name="wan_mini_low_noise.safetensors", ffn_pieces=2))
    train = ids["high_train"]
    desk.queue()
    assert "low noise expert by its name" in desk.until(train, "failed: ")
    until(lambda: "nothing is encoded" in desk.text(ids["latents"], REPORT) + desk.text(ids["text"], REPORT), "why")
    desk.page.keyboard.press("Escape")
    desk.set_widget(ids["high_dit"], "model_name", "wan_mini_high_noise.safetensors")
    desk.page.wait_for_function("(id) => !partOf(id, '.wan-train-head').textContent.includes('failed')", arg=train)


@pytest.mark.renderer("vue")
def test_check_says_what_a_training_will_take_and_where_it_fails(desk: Desk):
    ids = desk.load_prompt(training("checked"))
    train, data = ids["high_train"], ids["data"]
    desk.look_at(train)
    desk.press(train, "check")
    assert desk.until(train, "Nothing is in the way.", ANSWER)
    said = desk.text(train, NOTES)
    assert "3 steps with batch_size 1; 3,000 steps are 1,000 epochs" in said
    assert "on the CPU: 456 k" in said or " GB" in said
    assert "disk: " in said
    assert "buckets: 64x64x1 (1), 64x64x9 (2)" in desk.text(data, REPORT)
    assert desk.evaluate("() => fetch('/queue').then((answer) => answer.json())") == {
        "queue_running": [],
        "queue_pending": [],
    }

    desk.set_widget(data, "folder", "input/gone")
    desk.press(train, "check")
    assert desk.until(train, "To mend: DatasetFromFolder.", ANSWER)
    assert "gone" in desk.text(data, ".wan-train-failed")
    desk.set_widget(data, "folder", "input/shapes")
    desk.evaluate("(id) => nodeOf(id).disconnectInput(nodeOf(id).findInputSlot('vae'))", train)
    desk.press(train, "check")
    desk.until(train, "previews need a VAE")


@pytest.mark.renderer("vue")
def test_what_is_wrong_is_said_as_soon_as_an_input_changes(desk: Desk):
    ids = desk.load_prompt(training("glanced", steps=30))
    train, data = ids["high_train"], ids["data"]
    desk.look_at(train)
    desk.press(train, "check")  # after which the files are known
    desk.until(train, "Nothing is in the way.", ANSWER)
    desk.set_widget(train, "steps", 60)
    assert "memory and time: press Check" in desk.until(train, "60 steps are 20 epochs", NOTES)
    desk.set_widget(data, "folder", "input/gone")
    desk.until(data, "gone", ".wan-train-failed")
    desk.set_widget(data, "folder", "input/shapes")
    desk.until(data, "buckets: 64x64x1 (1), 64x64x9 (2)", REPORT)
