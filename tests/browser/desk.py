"""The real page in a real browser, as a person uses it: a tab of ComfyUI, its graph, and the buttons of our nodes."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ElementHandle, Page
from wan_train.tests.host_server import Host
from wan_train.tools.layout import api_to_ui

Json = dict[str, Any]
APP = "window.comfyAPI.app.app"
READY = (
    "!!window.comfyAPI?.app?.app?.vueAppReady && !!window.comfyAPI.app.app.extensionManager?.workflow?.activeWorkflow"
)
# nodeOf("3") or nodeOf("1:3"), the inner node 3 of the subgraph node 1; partOf: an element of a widget of ours.
HELPERS = f"""
window.nodeOf = (id) => String(id).split(":").reduce(
  ([graph], part) => {{ const node = graph?.getNodeById(part); return [node?.subgraph, node]; }},
  [{APP}.rootGraph])[1];
window.partOf = (id, selector) => {{
  const widgets = nodeOf(id)?.widgets ?? [];
  const own = widgets.find((widget) => widget.name === "loss_curve" || widget.name === "report")?.element;
  return own && (own.matches(selector) ? own : own.querySelector(selector));
}};
"""
HEAD, NOTES, REPORT, ANSWER = ".wan-train-head", ".wan-train-notes", ".wan-train-report", ".wan-train-answer"
STILL = 40  # drawings, which take longer on a slow machine


class Desk:
    """One tab."""

    def __init__(self, browser: Browser, host: Host, *, modern: bool, locale: str = "en-US") -> None:
        self.host = host
        self.modern = modern
        size = {"width": 1600, "height": 1000}
        self.page: Page = browser.new_context(viewport=size, locale=locale).new_page()
        self.page.set_default_timeout(300_000)  # a busy machine draws slowly
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._note(message.text))
        self.open()

    def _note(self, text: str) -> None:
        if "[wan_train]" in text:
            self.complaints.append(text)

    def open(self) -> None:
        """Load the page anew, as F5 does."""
        self.host.server.request("/settings/Comfy.TutorialCompleted", True)  # else it greets with a window of templates
        self.page.goto(self.host.url)
        self.page.wait_for_function(READY)
        self.page.evaluate(
            f"""async (modern) => {{
              const settings = {APP}.extensionManager.setting;
              await settings.set("Comfy.VueNodes.Enabled", modern);
            }}""",
            self.modern,
        )
        self.page.evaluate(HELPERS)
        self.page.keyboard.press("Escape")

    def load(self, workflow: Json, name: str = "tried") -> None:
        """Open a workflow (UI format), all of it in view."""
        self.page.evaluate(
            f"async ([workflow, name]) => {APP}.loadGraphData(workflow, true, true, name)", [workflow, name]
        )
        self.page.wait_for_function(f"{APP}.rootGraph.nodes.length > 0")
        self.fit()

    def load_prompt(self, prompt: Json, name: str = "tried") -> dict[str, int]:
        """Open a prompt (API format) as a workflow; its keys, and the ids that their nodes got."""
        self.load(api_to_ui(prompt, self.host.object_info()), name)
        return {key: number for number, key in enumerate(prompt, 1)}

    def fit(self) -> None:
        """Show the whole graph."""
        self.page.evaluate(f"""() => {{
          const boxes = {APP}.rootGraph.nodes.map((node) => node.boundingRect);
          const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
          const right = Math.max(...boxes.map((box) => box[0] + box[2]));
          const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
          const {{ ds }} = {APP}.canvas;
          ds.scale = Math.min(1300 / (right - left), 820 / (bottom - top), 1);
          ds.offset[0] = 100 / ds.scale - left;
          ds.offset[1] = 100 / ds.scale - top;
          {APP}.canvas.setDirty(true, true);
        }}""")

    def look_at(self, node: int | str) -> None:
        """Bring a node into the middle, large enough to press its buttons."""
        self.page.evaluate(
            f"""(id) => {{
              const node = nodeOf(id), {{ ds }} = {APP}.canvas;
              ds.scale = 0.8;
              ds.offset[0] = 300 / ds.scale - node.pos[0];
              ds.offset[1] = 120 / ds.scale - node.pos[1];
              {APP}.canvas.setDirty(true, true);
            }}""",
            node,
        )
        self.drawn()

    def drawn(self, times: int = 4) -> None:
        """Wait until the page has been drawn a few times more: its elements are then in their place on the canvas."""
        self.page.evaluate(
            "async (times) => { for (let i = 0; i < times; i++) await new Promise(requestAnimationFrame); }", times
        )

    def still(self, script: str) -> Any:
        """What an arrow function gives when it has given the same at `STILL` drawings of the page, one after another."""
        return self.page.evaluate(
            f"""async ([still, most]) => {{
              const read = {script};
              let last = "", same = 0;
              for (let i = 0; same < still && i < most; i++) {{
                await new Promise(requestAnimationFrame);
                const now = JSON.stringify(read());
                same = now === last ? same + 1 : 0;
                last = now;
              }}
              return JSON.parse(last);
            }}""",
            [STILL, 100 * STILL],
        )

    def queue(self) -> None:
        """Press Run."""
        self.page.get_by_test_id("queue-button").first.click()

    def text(self, node: int | str, selector: str = HEAD) -> str:
        """What stands in a part of a node's chart or report."""
        return self.page.evaluate("([id, selector]) => partOf(id, selector)?.textContent ?? ''", [node, selector])

    def until(self, node: int | str, words: str, selector: str = HEAD, timeout: float = 300.0) -> str:
        """Wait until a part of a node's chart or report says `words`; all that it says then."""
        try:
            self.page.wait_for_function(
                "([id, selector, words]) => partOf(id, selector)?.textContent.includes(words)",
                arg=[node, selector, words],
                timeout=timeout * 1000,
            )
        except Exception as error:
            raise AssertionError(f"'{words}' did not come; it says '{self.text(node, selector)}'") from error
        return self.text(node, selector)

    def part(self, node: int | str, selector: str) -> ElementHandle:
        """An element of a node's chart."""
        found = self.page.evaluate_handle("([id, selector]) => partOf(id, selector)", [node, selector]).as_element()
        assert found is not None, f"node {node} has no {selector}"
        return found

    def buttons(self, node: int | str) -> list[str]:
        """The buttons that a training node offers."""
        return self.page.evaluate(
            """(id) => [...partOf(id, ".wan-train-buttons").querySelectorAll("button")]
              .filter((button) => !button.hidden).map((button) => button.textContent)""",
            node,
        )

    def press(self, node: int | str, ask: str) -> None:
        """Press one of them, with the mouse."""
        self.part(node, f"button[data-ask={ask}]").click()

    def set_widget(self, node: int | str, name: str, value: Any) -> None:
        """What typing into a widget comes to."""
        self.page.evaluate(
            """([id, name, value]) => {
              const widget = nodeOf(id).widgets.find((found) => found.name === name);
              widget.value = value;
              widget.callback?.(value);
            }""",
            [node, name, value],
        )
        self.remember()

    def remember(self) -> None:
        """What the page does after a change by hand: it takes a step that Ctrl+Z goes back."""
        self.page.evaluate(f"{APP}.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """What an arrow function gives in the page."""
        return self.page.evaluate(script, argument)

    def workflow(self) -> Json:
        """The workflow as Save would write it."""
        return self.page.evaluate(f"() => JSON.parse(JSON.stringify({APP}.rootGraph.serialize()))")

    def close(self) -> None:
        """Close the tab."""
        self.page.context.close()


def until(holds: Callable[[], Any], what: str, seconds: float = 600.0) -> Any:
    """Poll until `holds()` is true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.1)
    raise AssertionError(f"this did not come: {what}")


def template(name: str) -> Json:
    """One of the pack's templates."""
    path = Path(__file__).resolve().parents[2] / "example_workflows" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))
