"""The gallery of previews, on a run's own videos: prompts by steps, played in step, two compared, and again after a reload."""

import pytest
from wan_train.tests.browser.desk import Desk
from wan_train.tests.browser.test_training import run_of
from wan_train.tests.host.graphs import one_stage

PROMPTS = "[trigger] turns\na square waits --d 7"
FRAMES = "[...document.querySelectorAll('.wan-train-gallery canvas')].map((one) => Number(one.dataset.frame))"
DRAWN = "document.querySelectorAll('.wan-train-gallery canvas[data-frame]').length"
OPEN = "(id) => partOf(id, '.wan-train-previews button').click()"


def training(name: str, seed: int):
    size = {"preview_width": 64, "preview_height": 64, "preview_frames": 9}  # the first sample is a picture
    previews = {"preview_every": 2, "preview_steps": 2, "preview_cfg": 1.0, "preview_at_start": True, "vae": ["vae", 0]}
    prompt = one_stage(lora_name=name, steps=4, seed=seed, **previews, **size)
    prompt["text"]["inputs"]["sample_prompts"] = PROMPTS
    return prompt


@pytest.mark.grid(5, "the page")
@pytest.mark.renderer("vue")
def test_all_previews_are_seen_and_compared_with_the_keyboard(desk: Desk):
    # Of equal content the second would take up the first's checkpoint, and have no previews of its own.
    ids = desk.load_prompt(training(f"gallery_{'vue' if desk.modern else 'canvas'}", 172 if desk.modern else 171))
    train = ids["high_train"]
    desk.queue()
    desk.until(train, "finished")
    desk.open()  # the page brings the workflow back, and the server knows the run
    desk.until(train, "finished")
    desk.page.wait_for_function("(id) => !partOf(id, '.wan-train-previews').hidden", arg=train)
    desk.evaluate(OPEN, train)
    page = desk.page
    gallery = page.get_by_role("dialog", name="Previews of this run")
    cells = gallery.get_by_role("button", name="Compare step")
    cells.nth(5).wait_for()
    assert [cells.nth(i).get_attribute("aria-label") for i in range(cells.count())] == [
        f"Compare step {step} of {prompt}" for prompt in ("shp turns", "a square waits") for step in (0, 2, 4)
    ]
    page.wait_for_function(f"{DRAWN} === 8")  # six, and the two that are compared
    lit = page.evaluate("""() => [...document.querySelectorAll('.wan-train-gallery canvas')].map((one) => {
      const { data } = one.getContext('2d').getImageData(0, 0, one.width, one.height);
      return one.width === 64 && data.some((value, i) => i % 4 < 3 && value > 0);
    })""")
    assert lit == [True] * 8
    tops = {gallery.get_by_role("button", name=name).bounding_box()["y"] for name in ("Pause", "Close")}
    assert len(tops) == 1, "they are in a row"

    phone = page.context.new_page()
    phone.goto(f"{desk.host.url}/wan_train/watch")
    phone.locator("#run").select_option(run_of(desk, train))
    for prompt in ("shp turns", "a square waits"):
        pictures = phone.locator(f"h2:text-is('{prompt}') + .row img")
        pictures.nth(2).wait_for()
        alts = [pictures.nth(i).get_attribute("alt") for i in range(pictures.count())]
        assert alts == [f"preview of step {step}" for step in (4, 2, 0)]
    phone.close()

    moment = gallery.get_by_role("slider", name="Moment of all videos")
    moment.focus()
    page.keyboard.press("End")  # all stop, and go to the end together
    assert gallery.get_by_role("button", name="Play").is_visible()
    for key, moves in (("Home", "=== 0"), ("End", "> 0")):  # and all canvases show the same frame
        page.keyboard.press(key)
        page.wait_for_function(
            f"{FRAMES}.length === 8 && {FRAMES}.every((one, _, all) => one === all[0] && one {moves})"
        )
    left, right = (gallery.get_by_label(side, exact=True) for side in ("Left", "Right"))
    assert (left.input_value(), right.input_value()) == ("0", "4")
    cells.nth(4).focus()
    page.keyboard.press("Enter")
    assert (left.input_value(), right.input_value()) == ("0", "2")
    assert cells.nth(4).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Compare step 2 of a square waits"
    divide = gallery.get_by_role("slider", name="Where the left step ends")
    divide.focus()
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('.wan-train-above').style.clipPath") == "inset(0px 0px 0px 0%)"
    for _ in range(30):  # the focus stays inside
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('.wan-train-gallery').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert gallery.count() == 0

    desk.open()
    desk.until(train, "finished")
    page.wait_for_function("(id) => !partOf(id, '.wan-train-previews').hidden", arg=train)
    desk.evaluate(OPEN, train)
    cells.nth(5).wait_for()
    assert (left.input_value(), right.input_value()) == ("0", "2")  # as it was left
    assert cells.nth(4).get_attribute("aria-pressed") == "true"
    assert divide.input_value() == "0"
    page.keyboard.press("Escape")

    page.emulate_media(reduced_motion="reduce")
    desk.evaluate(OPEN, train)
    page.wait_for_function(f"{DRAWN} === 8")
    assert gallery.get_by_role("button", name="Play").is_visible()  # it waits for whoever wants less motion
    assert page.evaluate(FRAMES) == [0] * 8
    page.keyboard.press("Escape")
    page.emulate_media(reduced_motion="no-preference")
