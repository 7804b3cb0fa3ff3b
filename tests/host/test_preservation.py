"""Output preservation on the real host: the class word is cached with the captions, and the run is made of three terms."""

import json

from wan_train.core.settings.job import job_from_json
from wan_train.tests.host.graphs import one_stage
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tests.host.test_bad_input import failure


def test_it_is_trained_with_the_class_word(host):
    kept = {"output_preservation": 1.0, "blank_preservation": 0.5, "max_weight_norm": 0.01}
    before = run_folders(host)
    dataset = {"class_word": "shape", "slide_stride": 21}
    entry = host.run(one_stage(dataset=dataset, lora_name="kept", steps=2, seed=91, **kept))
    assert succeeded(entry)
    (folder,) = run_folders(host) - before
    job = job_from_json((folder / "job.json").read_text())
    assert {name: getattr(job.regularizers, name) for name in kept} == kept
    assert all(len(sample.class_texts) == 1 for sample in job.data.samples)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [set(step["terms"]) for step in steps] == [{"flow", "output_preservation", "blank_preservation"}] * 2
    assert steps[0]["terms"]["output_preservation"] == 0.0  # the LoRA does nothing yet
    assert steps[1]["terms"]["output_preservation"] > 0.0


def test_without_a_class_word_it_is_refused_before_a_model_is_loaded(host):
    node_id, message, _ = failure(host, one_stage(lora_name="none", steps=1, seed=92, output_preservation=1.0))
    assert node_id == "high_train"
    assert "no caption has a class word: set trigger_word and class_word of the dataset" in message
