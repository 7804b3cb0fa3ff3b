"""What is said before anything is cached is what the caches and the run then are."""

from dataclasses import replace

import pytest
import torch
from wan_train.core import disk
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import DatasetError, RunError
from wan_train.core.plan import card
from wan_train.core.plan.spread import assumed_card
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.train.forecast import disk_lines, expected_data, plan_line, spread_line
from wan_train.core.train.space import space_needed
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.data.conftest import write_clip
from wan_train.tests.core.data.test_encode import CharEncoder, PoolVAE

SAME = ("name", "shape", "caption", "repeats", "held_out", "loss_weight", "caption_dropout", "is_regularization")


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, size in enumerate(((64, 64), (96, 64), (64, 64))):
        write_clip(folder / f"{number}.mp4", 17, size=size)
        (folder / f"{number}.txt").write_text(f"ohwx {number}")
    return folder


def config(model_path, **changes) -> WanConfig:
    return replace(inspect(model_path).config, text_dim=8, **changes)


def scan(folder, **options):
    return scan_folder(folder, DatasetOptions(**{"width": 64, "height": 64, "num_frames": 9, **options}))


@pytest.mark.parametrize(("latent_format", "channels"), [("wan2.1", 16), ("wan2.2", 48)])
def test_the_data_are_those_that_the_caches_make(clips, tmp_path, model_path, latent_format, channels):
    dataset = scan(clips, held_out=1, repeats=3, loss_weight=2.0, drop_captions=0.5)
    store = Store(tmp_path / "cache")
    latents, _ = cache_latents(dataset, PoolVAE(latent_format), store)
    text, _ = cache_text(dataset.captions, CharEncoder(), store)
    made, expected = data_spec(latents, text), expected_data(dataset, config(model_path, out_dim=channels))
    for name in SAME:
        assert [getattr(s, name) for s in expected.samples] == [getattr(s, name) for s in made.samples], name
    assert (expected.text_dim, expected.fps, expected.conditioning) == (made.text_dim, made.fps, made.conditioning)


def test_an_image_to_video_model_is_given_no_single_picture(clips, model_path):
    write_clip(clips / "short.mp4", 1, size=(64, 64))
    (clips / "short.txt").write_text("ohwx")
    dataset = scan(clips)
    assert len(dataset.samples) == 4
    assert len(expected_data(dataset, config(model_path), "first frame").samples) == 3
    pictures = scan(clips, num_frames=1)
    with pytest.raises(DatasetError, match="is left to train on"):
        expected_data(pictures, config(model_path), "first frame")


def plan(job, model_path, tmp_path, **memory):
    job = replace(job, memory=replace(job.memory, **memory))
    return plan_line(job, inspect(model_path), torch.device("cpu"), tmp_path)


def test_the_plan_on_a_cpu_tells_memory_and_promises_no_time(job, model_path, tmp_path):
    line, to_mend, _ = plan(job, model_path, tmp_path)
    assert line.startswith("on the CPU: ")
    assert " GB; how long a step takes shows after the first ones" in line
    assert " a step," not in line
    assert not to_mend


def test_what_fits_no_budget_is_to_be_mended_and_said_with_what_would(job, model_path, tmp_path):
    line, to_mend, is_refused = plan(job, model_path, tmp_path, budget_gb=0.01)
    assert "does not fit" in line
    assert to_mend
    assert not is_refused  # on a CPU, where the system has the last word
    assert not plan(job, model_path, tmp_path, budget_gb=8.0).to_mend


def test_whoever_plans_by_hand_is_told_that_it_is_tried_all_the_same(job, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "available_ram", lambda: 0)
    monkeypatch.setattr(card, "_own_ram", lambda: 0)
    line, to_mend, is_refused = plan(job, model_path, tmp_path, plan="manual")
    assert not is_refused
    assert "does not fit" in line
    assert line.endswith("The run tries it all the same.")
    assert not to_mend


def test_batches_that_fit_one_after_another_need_not_fit_together(job, model_path, tmp_path):
    data = replace(job.data, samples=tuple(one for one in job.data.samples if one.name != "b"))  # of one size
    job = replace(job, data=data, loop=replace(job.loop, gradient_accumulation=64))
    budgets = [0.02 * 1.1**power for power in range(40)]
    fit = {mode: [not plan(job, model_path, tmp_path, join_batches=mode, budget_gb=gb).to_mend for gb in budgets]
           for mode in ("on", "off")}  # fmt: skip
    assert True in fit["off"]
    assert False in fit["off"]
    assert fit["on"] == fit["off"]


def test_several_gpus_are_told_and_whether_the_clips_fit(job, model_path, tmp_path):
    job = replace(job, loop=replace(job.loop, gradient_accumulation=2), parallel=replace(job.parallel, context=1))

    def told(of_card):
        return spread_line(job, inspect(model_path), 2, torch.device("cpu"), tmp_path, of_card)

    said = "2 GPUs: each step trains 2 batches, one a GPU; the same as gradient_accumulation 2 on one GPU; "
    assert told(None) == (f"{said}memory and time show at the start", False, False)  # nothing is known of the device
    assert told(assumed_card("GPU", 24 * 2**30)) == told(None)
    assert told(assumed_card("GPU", 2**20)) == (
        f"{said}by what is known now it does not fit, but it is tried",
        False,
        False,
    )


def test_the_disk_is_told_and_refused(job, model_path, tmp_path, monkeypatch):
    sizes = inspect(model_path).config
    (line,) = disk_lines(job, sizes, tmp_path / "new")
    assert line.startswith(f"disk: {disk.gigabytes(space_needed(job, sizes).total)} of ")
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1000)
    with pytest.raises(RunError, match="make room"):
        disk_lines(job, sizes, tmp_path / "new")
