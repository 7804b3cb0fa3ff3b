"""Join Datasets on the real host: two datasets, cached and trained a step; what it refuses."""

import asyncio
import json
import shutil

import pytest
from wan_train.core.settings.job import job_from_json
from wan_train.tests.host.graphs import DATASET, changed, data_graph, node, one_stage
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tests.host.test_bad_input import check, failure
from wan_train.tests.host.test_inputs import refused
from wan_train.tools.screenshot import APP, BROWSERS, open_browser


def joined(**train):
    """The same folder twice, with other settings, joined before the caches."""
    prompt = one_stage(steps=1, **train)
    prompt["data"] = node("DatasetFromFolder", **{**DATASET, "slide_stride": 18, "loss_weight": 2.0})
    prompt["plain"] = node(
        "DatasetFromFolder",
        **{
            **DATASET,
            "slide_stride": 18,
            "regularization": True,
            "default_caption": "a shape",
            "caption_extension": ".none",
            "more_sizes": "32",
            "drop_captions": 0.5,
            "held_out": 1,
        },
    )
    prompt["join"] = node("JoinDatasets", **{"datasets.dataset_0": ["data", 0], "datasets.dataset_1": ["plain", 0]})
    return changed(changed(prompt, "latents", dataset=["join", 0]), "text", dataset=["join", 0])


def test_two_datasets_are_joined_and_trained(host):
    before = run_folders(host)
    entry = host.run(joined(lora_name="joined", seed=77))
    assert succeeded(entry)
    (folder,) = run_folders(host) - before
    job = job_from_json((folder / "job.json").read_text())
    assert [sample.name.split("/")[0] for sample in job.data.samples] == ["shapes (1)"] * 3 + ["shapes (2)"] * 6
    assert {sample.loss_weight for sample in job.data.samples[:3]} == {2.0}
    assert {sample.loss_weight for sample in job.data.samples[3:]} == {1.0}
    assert {sample.caption_dropout for sample in job.data.samples[:3]} == {None}
    assert {sample.caption_dropout for sample in job.data.samples[3:]} == {0.5}
    assert [sample.is_regularization for sample in job.data.samples] == [False] * 3 + [True] * 6
    assert {sample.caption for sample in job.data.samples[3:]} == {"a shape"}
    assert len(job.held_out_samples) == 1
    assert job.trigger_word == "shp"
    lines = entry["outputs"]["join"]["text"][0].splitlines()
    assert lines[0].startswith("shapes (1): 2 clips, 1 image: 3 samples an epoch; buckets 64x64x1 (1), 64x64x9 (2); ")
    assert lines[1].startswith("shapes (2): 2 clips, 1 image: 5 samples an epoch, 1 held out; ")
    assert lines[1].endswith("keeps what the model knows")
    assert lines[2] == "together: 4 clips, 2 images: 8 samples an epoch, 1 held out"
    assert lines[4].endswith("8 steps with batch_size 1")
    assert entry["outputs"]["high_train"]["text"][0].startswith("finished: 1 step, 0.1 epochs")


def test_one_dataset_passes_through(host):
    prompt = changed(data_graph(slide_stride=19), "latents", dataset=["join", 0])
    prompt["join"] = node("JoinDatasets", **{"datasets.dataset_0": ["data", 0]})
    prompt["text"] = node("CacheT5", dataset=["join", 0], clip=["clip", 0])
    prompt["train"] = one_stage(lora_name="through", steps=1, seed=78)["high_train"]
    prompt["high_dit"] = one_stage()["high_dit"]
    entry = host.run(prompt)
    assert succeeded(entry)
    assert entry["outputs"]["join"]["text"][0].startswith("2 clips, 1 image: 3 samples an epoch\n")


def test_another_type_on_a_wire_is_refused_before_anything_runs(host):
    prompt = joined(lora_name="wrong", seed=79)
    prompt["join"] = node("JoinDatasets", **{"datasets.dataset_0": ["vae", 0]})
    name, sentence = refused(host, prompt)
    assert name == "join"
    assert "mismatch" in sentence


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "datasets has no wire: connect at least one Dataset from Folder"),
        ({"datasets.dataset_3": 7}, "datasets.dataset_3 must be connected to Dataset from Folder, but it is"),
    ],
)
def test_what_is_no_dataset_is_one_sentence(host, inputs, words):
    prompt = joined(lora_name="wrong", seed=79)
    prompt["join"] = node("JoinDatasets", **inputs)
    check(failure(host, prompt)[:2], "join", words)


def test_the_first_may_be_absent(host):
    prompt = joined(lora_name="second", seed=80)
    del prompt["join"]["inputs"]["datasets.dataset_0"]
    entry = host.run(prompt)
    assert succeeded(entry)
    assert entry["outputs"]["join"]["text"][0].startswith("2 clips, 1 image: 5 samples an epoch, 1 held out\n")


def test_a_size_that_is_none_is_refused_by_its_node(host):
    found = failure(host, changed(joined(lora_name="wrong", seed=79), "plain", more_sizes="500"))
    check(found, "plain", "is 500, but Wan needs a multiple of 16")


CONNECT = f"""
const app = {APP}, graph = app.rootGraph;
graph.clear();
const make = (type) => {{ const node = LiteGraph.createNode(type); graph.add(node); return node; }};
const join = make("JoinDatasets"), cache = make("CacheLatents");
const counts = [join.inputs.length], datasets = [];
for (let i = 0; i < 3; i++) {{
  datasets.push(make("DatasetFromFolder"));
  datasets[i].connect(0, join, i);
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  counts.push(join.inputs.length);
}}
join.connect(0, cache, 0);
const inputs = async () => {{
  const prompt = (await app.graphToPrompt()).output;
  return Object.keys(Object.values(prompt).find((found) => found.class_type === "JoinDatasets").inputs);
}};
const all = await inputs();
datasets[0].mode = 2;
return {{ counts, all, without: await inputs() }};
"""


async def on_the_page(url):
    """In both of the page's renderers: what was found in each."""
    found = {}
    async with open_browser() as page:
        await page.open(url)
        for name, is_modern in (("canvas", False), ("vue", True)):
            await page.run(
                f"await ({APP}).extensionManager.setting.set('Comfy.VueNodes.Enabled', {json.dumps(is_modern)})"
            )
            found[name] = await page.run(CONNECT)
    return found


@pytest.mark.grid(2)
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium is installed")
def test_an_input_appears_on_the_page_when_the_last_one_is_connected(host):
    seen = asyncio.run(on_the_page(host.url))
    for name, found in seen.items():
        assert all(count > connected for connected, count in enumerate(found["counts"])), f"one is free: {name}"
        assert found["counts"][3] == 4, name
        assert found["all"] == ["datasets.dataset_0", "datasets.dataset_1", "datasets.dataset_2"], name
        assert found["without"] == ["datasets.dataset_1", "datasets.dataset_2"], name  # the first is muted
