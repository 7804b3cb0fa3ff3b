"""Setups of other trainers on the real host: the route's answers, a run of what it makes, and a drop on the real page."""

import asyncio
import json
import shutil
import urllib.error
import urllib.request

import pytest
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.importers.given import SETUPS
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tools.screenshot import APP, BROWSERS, open_browser
from wan_train.tools.workflow import ui_to_api

COMMAND = """accelerate launch wan_train_network.py --task t2v-A14B \\
  --dit /models/wan_mini_high_noise.safetensors --vae /m/wan_mini_vae.safetensors --t5 /m/wan_mini_umt5.safetensors \\
  --network_module networks.lora_wan --network_dim 2 --network_alpha 2 --learning_rate 1e-3 --seed 77 \\
  --timestep_sampling sigmoid --max_train_steps 1 --output_name brought --min_timestep 900 --max_timestep 1000 \\
  --preserve_distribution_shape
"""
DATASET = """
[[datasets]]
video_directory = "/elsewhere/shapes"
resolution = [64, 64]
target_frames = [5, 9]
caption_extension = ".txt"
"""


def post(host, body, **headers):
    """(status, answer) of a request."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{host.url}/wan_train/import", data, headers)
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def files(**texts):
    return {"files": [{"name": name.replace("__", "."), "text": text} for name, text in texts.items()]}


@pytest.fixture(scope="module")
def brought(host):
    """The answer for the command and its dataset."""
    status, answer = post(host, files(train__sh=COMMAND, dataset__toml=DATASET))
    assert status == 200, answer
    return answer


def test_the_workflow_trains_as_the_setup_says(host, brought):
    prompt = ui_to_api(brought["workflow"], host.object_info())
    for key, node in list(prompt.items()):
        if node["class_type"] in ("PreviewLoRA", "SaveVideo", "UNETLoader", "LossGraphNode", "MergeStages"):
            del prompt[key]
        elif node["class_type"] == "CLIPLoader":  # the miniature text encoder has a loader of its own
            prompt[key] = {"class_type": "WanLoadUMT5", "inputs": {"name": node["inputs"]["clip_name"]}}
        elif node["class_type"] == "DatasetFromFolder":  # its captions hold [trigger]
            node["inputs"]["trigger_word"] = "shp"
    kinds = [node["class_type"] for node in prompt.values()]
    assert kinds.count("DatasetFromFolder") == 2
    assert kinds.count("TrainLoRAStage") == 1
    before = run_folders(host)
    assert succeeded(host.run(prompt))
    (folder,) = run_folders(host) - before
    job = RunFolder(folder).read_job()
    assert (job.stage, job.name, job.loop.seed, job.loop.steps) == ("high", "brought", 77, 1)
    assert (job.adapter.rank, job.optimizer.learning_rate, job.timesteps.sampling) == (2, 1e-3, "sigmoid")
    assert job.timesteps.sigma_min == pytest.approx(0.9)
    assert {sample.shape[1] for sample in job.data.samples} == {1, 2, 3}  # pictures, and clips of 5 and 9 frames


def test_report_and_recipe(brought):
    assert brought["name"] == "brought"
    assert "--network_dim = 2  ->  adapter.rank = 2" in brought["report"]
    assert "low noise expert: its nodes are muted" in brought["report"]
    assert 'high = "/models/wan_mini_high_noise.safetensors"' in brought["recipe"]


@pytest.mark.parametrize("peer", SETUPS)
def test_every_setup_becomes_a_workflow_that_the_host_knows(host, peer):
    status, answer = post(host, {"files": [{"name": name, "text": text} for name, text in SETUPS[peer].items()]})
    assert status == 200, answer
    assert ui_to_api(answer["workflow"], host.object_info())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"files": 1}',
        b'{"files": [1]}',
        b'{"files": [{"name": 1, "text": 2}]}',
        b'{"files": [{"name": "a"}]}',
    ],
)
def test_what_holds_no_files_is_refused(host, body):
    assert post(host, body) == (400, {"error": "the request holds no files."})


def test_what_is_no_setup_is_a_sentence(host):
    status, answer = post(host, files(a__txt="hello"))
    assert (status, "a.txt is no setup of a trainer that is known" in answer["error"]) == (422, True)
    status, answer = post(host, files(a__toml='a = "C:\\Users"'))
    assert (status, "needs single quotes" in answer["error"]) == (422, True)


def test_too_much_is_refused(host):
    status, answer = post(host, files(a__txt="x" * 9_000_000))
    assert (status, "more than 8 MB" in answer["error"]) == (413, True)


def test_another_hosts_name_is_refused(host):
    status, _ = post(host, files(a__txt="x"), Host="evil.example", Origin="http://evil.example")
    assert status == 403


DROP = """
const files = %s;
const carried = new DataTransfer();
for (const [name, text] of Object.entries(files)) carried.items.add(new File([text], name));
const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: carried });
document.querySelector("canvas").dispatchEvent(event);
return event.defaultPrevented;
"""
SHOWN = "document.querySelector('.wan-train-import pre')?.textContent"


async def drop(url, dropped):
    """(whether ours took it, the report, the nodes' classes, values of the high noise run, complaints of the page)."""
    async with open_browser() as page:
        await page.open(url)
        taken = await page.run(DROP % json.dumps(dropped))
        await page.wait_for(SHOWN)
        kinds = await page.run(f"return ({APP}).rootGraph.nodes.map((node) => node.type)")
        seed = await page.run(
            f"return ({APP}).rootGraph.nodes.filter((node) => node.type === 'TrainLoRAStage')"
            ".map((node) => node.widgets.find((widget) => widget.name === 'seed').value)"
        )
        joined = await page.run(
            f"return ({APP}).rootGraph.nodes.find((node) => node.type === 'JoinDatasets').inputs"
            ".filter((input) => input.link != null).length"
        )
        command = await page.run(
            f"return ({APP}).extensionManager.command.commands.some((c) => c.id === 'WanTrain.Import')"
        )
        report = await page.run(f"return {SHOWN}")
        complaints = [line for line in page.log if line.startswith("uncaught") or "wan_train" in line]
        return taken, report, kinds, seed, joined, command, complaints


@pytest.mark.grid(5, "the page")
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium is installed")
def test_a_drop_on_the_page(host):
    dropped = {"train.sh": COMMAND, "dataset.toml": DATASET}
    taken, report, kinds, seed, joined, command, complaints = asyncio.run(drop(host.url, dropped))
    assert complaints == []
    assert taken
    assert report.startswith("musubi-tuner, Wan 2.2 T2V A14B")
    assert kinds.count("DatasetFromFolder") == 2
    assert (seed[0], joined, command) == (77, 2, True)
