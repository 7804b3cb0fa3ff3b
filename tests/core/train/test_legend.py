"""What tells runs apart is said in the words of the node."""

from dataclasses import replace

import pytest
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.train.legend import settings_of, settings_that_differ


def of(*jobs):
    return {setting.name: setting.values for setting in settings_that_differ(jobs)}


def test_runs_that_are_alike_do_not_differ(job):
    assert of(job, replace(job, name="other", device="cuda")) == {}
    assert of(job) == {}


def test_options_have_the_names_and_values_of_their_widgets(job):
    other = replace(job, adapter=replace(job.adapter, rank=64), optimizer=replace(job.optimizer, learning_rate=2e-4))
    third = replace(job, memory=replace(job.memory, checkpointing=True))
    found = of(job, other, third)
    assert found["rank"] == ("4", "64", "4")
    assert found["learning_rate"] == ("0.01", "0.0002", "0.01")
    assert found["checkpointing"] == ("auto", "auto", "on")
    assert len(found) == 3


def test_other_data_differs_though_it_is_as_much(job):
    samples = tuple(replace(sample, latents_key=f"{sample.latents_key}x") for sample in job.data.samples)
    found = of(job, replace(job, data=replace(job.data, samples=samples)))
    assert list(found) == ["data"]
    assert len(set(found["data"])) == 2
    held = (replace(job.data.samples[0], held_out=True), *job.data.samples[1:])
    assert of(job, replace(job, data=replace(job.data, samples=held)))["held out"] == ("0 samples", "1 sample")


def test_another_model_of_the_same_kind_differs(job):
    assert list(of(job, replace(job, model=replace(job.model, identity="0" * 8), stage="high"))) == ["stage", "model"]


def test_what_a_run_is_trained_with_is_told_without_what_is_usual(job):
    found = dict(settings_of(replace(job, adapter=replace(job.adapter, rank=64, alpha=AdapterOptions().alpha))))
    assert found["rank"] == "64"
    assert found["learning_rate"] == "0.01"
    assert found["data"].startswith(f"{len(job.training_samples)} samples (")
    assert found["held out"] == "0 samples"
    assert "alpha" not in found


@pytest.mark.parametrize("place", ["/home/me/secret/fast.safetensors", "C:\\secret\\fast.safetensors"])
def test_where_a_file_lies_is_not_told(job, place):
    previews = replace(job.previews, every=2, lora=place)
    assert dict(settings_of(replace(job, previews=previews)))["preview_lora"] == "fast.safetensors"
    assert of(job, replace(job, previews=previews))["preview_lora"] == ("", "fast.safetensors")
