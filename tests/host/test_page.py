"""The real page in a real browser: our widgets stand on the nodes, and the curve of a run is drawn, in both renderers."""

import asyncio
import json
from pathlib import Path

import pytest
from wan_train.tests.chromium import find_chromium
from wan_train.tools.screenshot import APP, open_browser

PACK = Path(__file__).resolve().parents[2]
WORKFLOW = json.loads((PACK / "example_workflows" / "demo.json").read_text(encoding="utf-8"))
TRAIN = next(node for node in WORKFLOW["nodes"] if node["type"] == "TrainLoRAStage")
STAGE = next(value for value in TRAIN["widgets_values"] if str(value).endswith(" noise")).split()[0]
UPDATE = f"""
const node = ({APP}).rootGraph.getNodeById({TRAIN["id"]});
const name = node.widgets.find((widget) => widget.name === "lora_name").value;
const losses = Array.from({{ length: 20 }}, (_, i) => [i + 1, 1 / (i + 2)]);
const detail = {{ node_id: "{TRAIN["id"]}", run: name + "_0", token: "", name,
  stage: "{STAGE}", steps: 40, state: "training", line: "", losses, validation: [] }};
window.comfyAPI.api.api.dispatchEvent(new CustomEvent("wan_train.update", {{ detail }}));
"""
# Half of the plot, at the zoom that shows the whole graph.
DRAWN = "document.querySelector('.wan-train-smooth')?.getBoundingClientRect().width > 15"
REPORTS = "return document.querySelectorAll('.wan-train-report').length"
PRESETS = f"""
const node = ({APP}).rootGraph.getNodeById({TRAIN["id"]});
const extension = ({APP}).extensions.find((found) => found.name === "WanTrain");
return extension.getNodeMenuItems(node).map((item) => item?.content ?? null);
"""
# What a Timestep Density has that took the settings of the training, of which one was set anew.
DENSITY = f"""
const graph = ({APP}).rootGraph;
const widgetOf = (node, name) => node.widgets.find((widget) => widget.name === name);
widgetOf(graph.getNodeById({TRAIN["id"]}), "timestep_shift").value = 7.5;
const density = LiteGraph.createNode("WanTimestepDensity");
graph.add(density);
const extension = ({APP}).extensions.find((found) => found.name === "WanTrain");
extension.getNodeMenuItems(density)[1].submenu.options[0].callback();
return widgetOf(density, "timestep_shift").value;
"""


async def look(url: str, modern: bool) -> tuple[str, int, list[str | None], float, list[str]]:
    """Head of the chart after an update, reports, the preset menu, a shift that Timestep Density took, and complaints."""
    async with open_browser() as page:
        await page.open(url)
        await page.run(f"await ({APP}).extensionManager.setting.set('Comfy.VueNodes.Enabled', {json.dumps(modern)})")
        await page.load(WORKFLOW, "demo")
        await page.fit()
        await page.run(UPDATE)
        await page.wait_for(DRAWN)
        head = await page.run("return document.querySelector('.wan-train-head').textContent")
        reports, menu, shift = [await page.run(script) for script in (REPORTS, PRESETS, DENSITY)]
        complaints = [line for line in page.log if line.startswith("uncaught") or "wan_train" in line]
        return head, reports, menu, shift, complaints


@pytest.fixture(scope="module", autouse=True)
def _chromium():
    find_chromium()


@pytest.mark.grid(2)
@pytest.mark.parametrize("modern", [False, True], ids=["canvas", "vue"])
def test_the_chart_is_drawn_on_the_node(host, modern):
    head, reports, menu, shift, complaints = asyncio.run(look(host.url, modern))
    assert complaints == []
    assert head.startswith("step 20 of 40 smoothed loss 0.")
    shown = {"DatasetFromFolder", "CacheLatents", "CacheT5", "LoadWanDiT", "MergeStages", "WanLoRAFromFile"}
    assert reports == sum(node["type"] in shown for node in WORKFLOW["nodes"])
    assert menu == [None, "WanTrain preset"]
    assert shift == 7.5
