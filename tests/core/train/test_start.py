"""What would fail at the end of a run fails before its start; a run folder leads nowhere else."""

import json
import os
from dataclasses import replace

import pytest
import torch
from wan_train.core.adapters.formats import read_lora
from wan_train.core.adapters.metadata import lora_metadata
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.settings.loss import LossOptions
from wan_train.core.train import start as start_module
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.label import describe_lora
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.start import check_names_fit, check_run_folder, check_start
from wan_train.core.wan.checkpoint import inspect

CPU = torch.device("cpu")


def folder_of(path, job):
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    folder.write_job(job)
    return folder


def steps_of(folder):
    return [event["step"] for event in EventReader(folder.events_path).read() if event["event"] == "step"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda job: replace(job, model=replace(job.model, label="")), r"set model\.label to 'wan2\.2-t2v-"),
        (lambda job: replace(job, model=replace(job.model, label="sdxl")), "base_model is 'sdxl'; it must look like"),
        (
            lambda job: replace(job, timesteps=replace(job.timesteps, sigma_min=0.8749, sigma_max=0.875)),
            "timestep_range is 875,875; it must rise",
        ),
        (
            lambda job: replace(job, previews=replace(job.previews, every=2), preview_vae="/dev/null"),
            "preview_vae is /dev/null, which is a device",
        ),
    ],
)
def test_what_the_end_needs_is_asked_for_at_the_start(job, tmp_path, spoil, message):
    spoilt = spoil(job)
    folder = folder_of(tmp_path / "run", spoilt)
    with pytest.raises(ConfigError, match=message):
        run_job(folder, EventWriter(folder.events_path), CPU, lambda: False)
    assert steps_of(folder) == []
    with pytest.raises(ConfigError, match=message):
        check_start(spoilt, inspect(job.model.path))


def test_whatever_a_graph_holds_the_lora_is_written(job, tmp_path):
    """Half surrogate pairs in captions and workflow, numbers that are none, and a workflow that is no table."""
    sample = replace(job.data.samples[0], caption="half \ud83d a pair")
    job = replace(job, data=replace(job.data, samples=(sample, *job.data.samples[1:])), trigger_word="t\udc80")
    folder = folder_of(tmp_path / "run", replace(job, loop=replace(job.loop, steps=1)))
    workflow = {"nodes": [float("nan"), "\ud83d", 1e400]}
    folder.workflow_path.write_text(json.dumps({"workflow": workflow, "prompt": "no table"}), encoding="utf-8")
    lora = run_job(folder, EventWriter(folder.events_path), CPU, lambda: False)
    metadata = read_lora(lora).metadata
    assert json.loads(metadata["workflow"]) == {"nodes": [None, "�", None]}
    assert "prompt" not in metadata
    assert metadata["modelspec.trigger_phrase"] == "t�"
    assert json.loads(metadata["ss_tag_frequency"])["dataset"]["half � a pair"] == 1


def test_equal_captions_are_counted_together(job):
    samples = tuple(replace(sample, caption="same", repeats=2) for sample in job.data.samples)
    described = describe_lora(replace(job, data=replace(job.data, samples=samples)), step=1)
    assert described.training.tag_frequency == {"same": 6}


def test_a_name_that_the_disk_does_not_take_is_told_at_the_start(tmp_path):
    check_names_fit(tmp_path / "not there yet", "short")
    with pytest.raises(RunError, match="choose a shorter name"):
        check_names_fit(tmp_path, "n" * 240)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(RunError, match="is a folder, where the LoRA will be written"):
        check_names_fit(tmp_path, "taken")


@pytest.mark.parametrize(
    "name", ["events.jsonl", "worker.log", ".lock", "stop", "checkpoints", "previews", "deep/er/x"]
)
@pytest.mark.parametrize("leads", ["out", "nowhere", "up"])
def test_links_that_lead_out_of_a_run_folder_are_refused(tmp_path, name, leads):
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    outside.mkdir()
    target = {"out": outside, "nowhere": outside / "new", "up": ".."}[leads]
    (run / name).symlink_to(target, target_is_directory=leads != "nowhere")
    if leads == "up" and name == "deep/er/x":  # which stays inside
        check_run_folder(run)
        return
    with pytest.raises(RunError, match=f"{name.split('/')[-1]} is a link to .*a run writes into its own folder only"):
        check_run_folder(run)


def test_links_inside_a_run_folder_and_links_to_it_do(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "latest").symlink_to(run / "checkpoints", target_is_directory=True)
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    check_run_folder(run)
    check_run_folder(tmp_path / "link")
    check_run_folder(tmp_path / "not there yet")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names on Windows")
def test_pipes_hard_links_and_loops_are_refused(tmp_path):
    for name, make, message in (
        ("events.jsonl", os.mkfifo, "is a pipe, a device or a socket"),
        ("worker.log", lambda path: os.link(tmp_path / "bashrc", path), "hard link"),
        ("checkpoints", lambda path: path.symlink_to(path), "can't be followed|is a link"),
        ("job.json", lambda path: path.mkdir(), "is a folder, not a file"),
        ("previews", lambda path: path.touch(), "is a file, not a folder"),
    ):
        (tmp_path / "bashrc").touch()
        run = tmp_path / f"run {name}"
        run.mkdir()
        make(run / name)
        with pytest.raises(RunError, match=message):
            check_run_folder(run)


def test_a_hard_link_is_told_where_the_list_of_a_folder_does_not_tell_it(tmp_path, monkeypatch):
    class WindowsEntry:
        """As `os.scandir` gives it there."""

        def __init__(self, entry):
            self._entry, self.name, self.path = entry, entry.name, entry.path
            self.is_symlink, self.is_dir = entry.is_symlink, entry.is_dir

        def stat(self, **how):
            mode, inode, device, _, *others = self._entry.stat(**how)
            return os.stat_result((mode, inode, device, 0, *others))

    run, real = tmp_path / "run", start_module._entries
    run.mkdir()
    (tmp_path / "bashrc").touch()
    os.link(tmp_path / "bashrc", run / "worker.log")
    monkeypatch.setattr(start_module, "_entries", lambda folder: map(WindowsEntry, real(folder)))
    with pytest.raises(RunError, match="hard link"):
        check_run_folder(run)


def test_a_folder_that_is_no_run_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(start_module, "MAX_ENTRIES", 3)
    for number in range(4):
        (tmp_path / f"{number}").touch()
    with pytest.raises(RunError, match="more than 3 files, so it is no run folder"):
        check_run_folder(tmp_path)


def test_scratch_lies_beside_the_runs_or_inside_a_run_elsewhere(tmp_path):
    assert RunFolder(tmp_path / "work" / "runs" / "x").scratch_path == tmp_path / "work" / "cache"
    assert RunFolder(tmp_path / "Downloads" / "x").scratch_path == tmp_path / "Downloads" / "x" / "cache"


def test_a_result_names_a_file_of_its_own_folder(tmp_path):
    (tmp_path / "other.safetensors").touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text('{"step": 1, "lora": "../other.safetensors"}', encoding="utf-8")
    assert RunFolder(run).finished_lora(1) is None


def test_the_description_says_how_noise_levels_and_loss_were_chosen(job):
    plain = describe_lora(job, step=1).training.levels
    assert plain == {"ss_timestep_sampling": "uniform", "ss_weighting_scheme": "none", "ss_loss_type": "mse"}
    job = replace(
        job,
        timesteps=replace(job.timesteps, sampling="shift", shift=5.0),
        loss=LossOptions(kind="soft_l1", weighting="cosmap", huber_schedule="snr"),
    )
    assert (
        lora_metadata(describe_lora(job, step=1)).items()
        >= {
            "ss_timestep_sampling": "shift",
            "ss_discrete_flow_shift": "5.0",
            "ss_sigmoid_scale": "1.0",
            "ss_weighting_scheme": "cosmap",
            "ss_loss_type": "soft_l1",
            "ss_huber_c": "0.1",
            "ss_huber_schedule": "snr",
        }.items()
    )
