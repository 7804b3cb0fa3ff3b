"""What a run takes of its disk is known before it starts."""

import math
from dataclasses import replace

import pytest
import torch
from wan_train.core import disk
from wan_train.core.errors import RunError
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train.events import EventWriter
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.space import check_space, space_needed
from wan_train.core.wan.checkpoint import inspect


@pytest.fixture
def sizes(model_path):
    return inspect(model_path).config


def free(monkeypatch, number):
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: number)


def test_the_estimate_is_what_a_run_writes(tmp_path, job, sizes):
    job = replace(job, adapter=replace(job.adapter, rank=32), loop=replace(job.loop, checkpoint_every=1, keep_last=9))
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    lora = run_job(folder, EventWriter(folder.events_path), torch.device("cpu"), lambda: False)
    need = space_needed(job, sizes)
    assert need.checkpoints == len(folder.checkpoints()) == 6
    (_, path) = folder.checkpoints()[-1]
    assert sum(file.stat().st_size for file in path.iterdir()) == pytest.approx(need.checkpoint, rel=0.15)
    assert lora.stat().st_size == pytest.approx(need.lora, rel=0.15)
    assert folder.events_path.stat().st_size < need.diary * 2


def test_checkpoints_that_are_never_at_once_are_not_counted(job, sizes):
    loop = replace(job.loop, steps=100, checkpoint_every=10, keep_last=3)
    assert space_needed(replace(job, loop=loop), sizes).checkpoints == 4  # an old one waits for the new one
    assert space_needed(replace(job, loop=replace(loop, steps=15)), sizes).checkpoints == 2
    best = replace(job, loop=loop, saving=replace(job.saving, keep_best=True))
    assert space_needed(best, sizes).checkpoints == 4  # nothing is held out, and none is kept for its score
    first, *others = job.data.samples
    held = replace(best, data=replace(best.data, samples=(replace(first, held_out=True), *others)))
    assert space_needed(held, sizes).checkpoints == 6  # the best, and that of the lowest held-out loss


def test_what_cannot_fit_is_refused_with_gigabytes(tmp_path, job, sizes, monkeypatch):
    loop = replace(job.loop, steps=5000, checkpoint_every=1, keep_last=2000)
    job = replace(job, loop=loop, adapter=replace(job.adapter, rank=4_096))
    free(monkeypatch, 40 * 10**9)
    needed = space_needed(job, sizes).total / 1e9
    with pytest.raises(RunError) as caught:
        check_space(job, sizes, tmp_path)
    assert "checkpoint_every 1 with keep_last 2000 (2,001 checkpoints of 0.1 GB)" in str(caught.value)
    assert f"would take {math.floor(needed + 0.5)} GB, and 40.0 GB are free" in str(caught.value)
    assert "lower keep_last or raise checkpoint_every" in str(caught.value)


def test_more_than_half_of_what_is_free_is_warned_of(tmp_path, job, sizes, monkeypatch):
    need = space_needed(job, sizes).total
    free(monkeypatch, round(need * 1.5))
    (warning,) = check_space(job, sizes, tmp_path)
    assert "more than half of it" in warning
    free(monkeypatch, need * 3)
    assert check_space(job, sizes, tmp_path) == []
    free(monkeypatch, None)  # a system that does not say
    assert check_space(job, sizes, tmp_path) == []


def test_checkpoints_that_are_there_are_not_counted_again(tmp_path, job, sizes, monkeypatch):
    job = replace(job, loop=replace(job.loop, keep_last=50, steps=100))
    need = space_needed(job, sizes)
    free(monkeypatch, need.total - 1)
    with pytest.raises(RunError):
        check_space(job, sizes, tmp_path)
    folder = tmp_path / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True)
    for name in ("adapter.safetensors", "state.pt"):
        (folder / name).touch()
    assert check_space(job, sizes, tmp_path)


def test_previews_are_counted_up_to_those_that_are_kept(job, sizes):
    shown = replace(job, previews=PreviewOptions(every=1), loop=replace(job.loop, steps=10))
    ten, many = space_needed(shown, sizes), space_needed(replace(shown, loop=replace(shown.loop, steps=500)), sizes)
    assert ten.previews > 10 * 4 * 16 * 2 * 4 * 4
    assert many.previews == pytest.approx(2.4 * ten.previews)  # 20, a new one, and those of three checkpoints


def test_a_run_that_cannot_fit_does_not_load_its_model(tmp_path, job, monkeypatch):
    free(monkeypatch, 1000)
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    with pytest.raises(RunError, match=r"would take .* MB, and 0.001 MB are free"):
        run_job(folder, EventWriter(folder.events_path), torch.device("cpu"), lambda: False)
    assert not folder.checkpoints_path.exists()
