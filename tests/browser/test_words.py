"""The page in another language: ComfyUI takes it from the browser where nobody has chosen one."""

from wan_train.tests.browser.desk import HEAD, Desk
from wan_train.tests.browser.test_training import training
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
        assert desk.complaints == []
    finally:
        desk.close()
