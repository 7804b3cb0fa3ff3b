"""The page in another language: ComfyUI takes it from the browser where nobody has chosen one."""

import json
import urllib.parse

from wan_train.tests.browser.desk import HEAD, Desk
from wan_train.tests.browser.test_training import training
from wan_train.tools.help_pages import help_texts
from wan_train.tools.locales import LOCALES, translated


def test_the_page_has_the_language_of_comfyui(browser, host):
    words = translated(LOCALES / "zh")["main"]
    desk = Desk(browser, host, modern=False, locale="zh-CN")
    try:
        ids = desk.load_prompt(training("words", steps=1, seed=1))
        assert desk.until(ids["high_train"], words["The loss is drawn here while the LoRA trains."], HEAD)
        assert desk.buttons(ids["high_train"]) == [words["Check"]]
        desk.press(ids["high_train"], "check")
        desk.until(ids["high_train"], words["Nothing is in the way."], ".wan-train-answer")
        desk.page.get_by_role("button", name=words["WanTrain runs"]).first.click()
        desk.page.get_by_placeholder(words["Search runs"]).wait_for()

        desk.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", ids["high_train"])
        help_button = desk.page.locator("[data-testid=info-button]")  # under ComfyUI's own overlay for a plain click
        help_button.evaluate("(button) => button.click()")
        help_page = desk.page.locator(".node-help-content")
        help_page.get_by_role("heading", name=help_texts(LOCALES / "zh")["What errors mean"]).wait_for()

        page = desk.page.context.new_page()  # the pages that stand alone, too
        page.goto(f"{host.url}/wan_train/watch")
        page.get_by_label(words["Run"], exact=True).wait_for()
        settings = {"width": 64, "height": 64, "num_frames": 9, "trigger_word": "shp"}
        shown = {"folder": "input/shapes", "settings": settings}
        page.goto(f"{host.url}/wan_train/look#{urllib.parse.quote(json.dumps(shown))}")
        page.get_by_role("heading", name=words["What the model will see"]).wait_for()
        page.get_by_text(words["{number} of {count} shown"].format(number=3, count=3)).wait_for()
        page.get_by_role("button", name="clip_00").first.click()
        page.get_by_text(words["As it is trained"]).wait_for()
        assert page.evaluate("document.documentElement.lang") == "zh"
        assert desk.complaints == []
    finally:
        desk.close()
