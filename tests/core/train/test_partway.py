"""Checkpoints as LoRAs: by the names that people choose them by, and kept where a run was stopped to use it."""

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.train.checkpoints import AVERAGE
from wan_train.core.train.events import EventWriter
from wan_train.core.train.partway import checkpoint_lora, checkpoint_names, keep_newest, named_checkpoint
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path, job):
    """A finished run with the checkpoints 4 and 6."""
    made = RunFolder(tmp_path / "runs" / "test_low_0123456789abcdef")
    made.path.mkdir(parents=True)
    made.write_job(job)
    run_job(made, EventWriter(made.events_path), torch.device("cpu"), lambda: False)
    return made


def test_names_lead_to_the_files(folder):
    runs = folder.path.parent
    names = checkpoint_names(runs)
    assert names == ["test_low_0123456789abcdef / step 6", "test_low_0123456789abcdef / step 4"]
    assert named_checkpoint(runs, names[1]) == checkpoint_lora(folder, 4)
    assert named_checkpoint(runs, "some_lora.safetensors") is None
    assert named_checkpoint(runs, "../../etc / step 1") is None
    with pytest.raises(ConfigError, match="'test_low_0123456789abcdef / step 5' is gone"):
        named_checkpoint(runs, "test_low_0123456789abcdef / step 5")


def test_a_run_named_in_any_script_leads_to_its_files(folder):
    run = RunFolder(folder.path.rename(folder.path.with_name("हिन्दी_low_0123456789abcdef")))
    assert named_checkpoint(run.path.parent, checkpoint_names(run.path.parent)[1]) == checkpoint_lora(run, 4)


def test_the_newest_is_kept_when_its_checkpoint_goes(folder, job):
    step, lora = keep_newest(folder, job)
    assert (step, lora.name) == (6, "test_low_noise_step6.safetensors")
    source = checkpoint_lora(folder, 6)
    assert source is not None
    assert load_file(lora).keys() == load_file(source).keys()
    assert folder.finished_lora(6) is not None


def test_without_a_checkpoint_there_is_nothing_to_use(tmp_path, job):
    with pytest.raises(RunError, match="no checkpoint yet"):
        keep_newest(RunFolder(tmp_path), job)


def test_where_weights_are_averaged_the_average_is_meant(folder):
    adapter = checkpoint_lora(folder, 6)
    assert adapter is not None
    average = adapter.with_name(AVERAGE)
    average.write_bytes(adapter.read_bytes())
    assert checkpoint_lora(folder, 6) == average
