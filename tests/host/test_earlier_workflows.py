"""Workflows that users saved with version 9905e68 open in today's host, and their graphs train the same jobs.

tests/fixtures/9905e68/README.md says how the jobs were recorded.
"""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from wan_train.core.settings.job import Job, job_from_json
from wan_train.tests.fixtures.make import training_of
from wan_train.tests.host.runs import run_folders
from wan_train.tests.host.test_graph import provide_models, small
from wan_train.tools.workflow import ui_to_api

WORKFLOWS = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "9905e68" / "workflows").glob("*.json"))


def of_content(job: Job, recorded: Job) -> Job:
    """The job with the paths and digests of the recorded one: miniature weights differ in their last bits between machines."""
    samples = tuple(
        replace(
            sample,
            **{name: getattr(old, name) for name in ("latents_path", "latents_key", "text_path", "text_key")},
            **{name: getattr(old, name) for name in ("known_path", "known_key", "vision_path", "vision_key")},
        )
        for sample, old in zip(job.data.samples, recorded.data.samples, strict=True)
    )
    paths = {"empty_text_path": recorded.data.empty_text_path, "empty_text_key": recorded.data.empty_text_key}
    data = replace(job.data, samples=samples, **paths)
    assert Path(job.model.path).name == Path(recorded.model.path).name
    model = replace(job.model, path=recorded.model.path, identity=recorded.model.identity)
    assert (job.previews.shift, recorded.previews.shift) == (0.0, 5.0)  # today that of Preview LoRA, which no key holds
    return replace(job, data=data, model=model, previews=replace(job.previews, shift=5.0))


def jobs_of(host, prompt, count: int) -> list[Job]:
    """The jobs that a graph writes, before anything of them is trained to its end."""
    before = run_folders(host)
    prompt_id = host.queue(prompt)
    is_over, found = False, []
    while len(found) < count:
        assert not is_over, host.log_text()[-2000:]
        time.sleep(0.05)
        is_over = host.server.history(prompt_id) is not None  # asked first: what there is now is all there will be
        found = [f for f in run_folders(host) - before if (f / "job.json").is_file()]
    jobs = [job_from_json((folder / "job.json").read_text(encoding="utf-8")) for folder in found]
    host.interrupt(prompt_id)
    host.wait(prompt_id)
    for folder in run_folders(host) - before:
        shutil.rmtree(folder)  # other tests train the same jobs in this host, and count what is new
    return sorted(jobs, key=lambda job: job.stage)


@pytest.mark.grid(4)
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_saved_workflow_trains_the_same_jobs(host, path):
    prompt = small(ui_to_api(json.loads(path.read_text(encoding="utf-8")), host.object_info()), of_previews={})
    provide_models(host, prompt)
    for item in prompt.values():
        if item["class_type"] == "LoadImage":
            Image.new("RGB", (80, 64), (30, 90, 200)).save(host.base / "input" / item["inputs"]["image"])
    kept = json.loads(path.with_suffix(".jobs").read_text(encoding="utf-8"))
    recorded = [job_from_json(json.dumps(job)) for job in kept["jobs"]]
    found = jobs_of(host, training_of(prompt), len(recorded))
    for job, old in zip(found, recorded, strict=True):
        same = of_content(job, old)
        assert same == old
        assert f"{same.key}" in kept["keys"]
