"""Previews while a run trains on a GPU: beside resident and streamed blocks, compiled and not, and their decoding."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from wan_train.core.encoders.vae import load_video_encoder
from wan_train.core.plan.card import measure_card
from wan_train.core.plan.decision import decide
from wan_train.core.plan.planning import make_planner
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train import previews
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import make_sample
from wan_train.tests.core.train.test_cuda import CUDA, budget, large, of_kind, spec, train  # noqa: F401  # fixtures too
from wan_train.tools.mini_vae import wan_vae

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PREVIEWS = PreviewOptions(every=2, steps=3, cfg=2.0)
EAGER = MemoryOptions(plan="manual", attention="default", compile="off")
SAME = 0.02  # of the norm: runs whose kernels are the same, but for the order of the sums of attention's backward
ROUNDED = 0.05  # of the norm: previews by other kernels in bf16 (0.016 from fp32 on the CPU; 0.25 with a wrong block)


def as_single(job: Job, **changes) -> Job:
    """The job for a model that leads all the way from noise, so that previews come from the model alone."""
    return replace(job, stage="single", timesteps=replace(job.timesteps, sigma_min=0.0, sigma_max=1.0), **changes)


def within_budget(job: Job) -> Job:
    """The job with a budget that nothing but the leanest plan fits."""
    decision = decide(job, inspect(job.model.path), CUDA)
    planner = make_planner(job, decision, measure_card(CUDA, job.memory.attention))
    return replace(job, memory=replace(job.memory, budget_gb=budget(planner.leanest().vram + 2**20)))


def error(result, reference):
    """Norm of the difference over the norm, of two dictionaries of tensors."""
    assert result.keys() == reference.keys()
    difference, whole = (
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in ([result[name] - reference[name] for name in reference], reference.values())
    )
    return (difference.norm() / whole.norm()).item()


def preview_folder(tmp_path, name):
    return PreviewFolder.of(RunFolder(tmp_path / "runs" / name))


def read_previews(tmp_path, name):
    """Latents by step; all finite."""
    found = {step: preview_folder(tmp_path, name).read(step) for step in (2, 4)}
    assert all(latents.isfinite().all() for latents in found.values())
    return found


def warnings_of(events):
    return [event["message"] for event in of_kind(events, "warning")]


@pytest.fixture(scope="module")
def simple():
    """The previews, by step, of the run below that has no features at all; made by the first test that needs them."""
    return {}


@pytest.fixture
def reserved(monkeypatch):
    """Bytes that the process held at most up to the end of each preview, its decoding included: no part of what steps take."""
    make, most = previews.Preview._make, []

    def watched(self, trainer):
        make(self, trainer)
        most.append(torch.cuda.max_memory_reserved(CUDA))

    monkeypatch.setattr(previews.Preview, "_make", watched)
    return most


@pytest.mark.parametrize("compile_mode", ["off", "static"])
@pytest.mark.parametrize("held", ["resident", "streamed"])
def test_previews_neither_change_a_run_nor_are_changed_by_its_plan(
    tmp_path,
    large: Job,  # noqa: F811
    simple,
    reserved,
    held,
    compile_mode,
):
    job = as_single(large, memory=replace(EAGER, checkpointing=False, attention="flash"))
    if not simple:
        train(tmp_path, replace(job, previews=PREVIEWS), "simple")
        simple |= read_previews(tmp_path, "simple")
    job = replace(job, memory=MemoryOptions(attention="flash", compile=compile_mode))
    if held == "streamed":
        job = within_budget(job)
    losses, lora, _ = train(tmp_path, job, "quiet")
    reserved.clear()
    found, found_lora, events = train(tmp_path, replace(job, previews=PREVIEWS), "shown")
    reserved.append(torch.cuda.max_memory_reserved(CUDA))

    (told,) = of_kind(events, "plan")  # and none after it: no preview has run out of memory
    assert told["plan"]["compile"] == compile_mode
    if held == "streamed":
        assert told["plan"]["streamed_blocks"] > 2
        assert told["plan"]["offload_inputs"]
        assert max(reserved) <= job.memory.budget_gb * 2**30
    else:
        assert told["plan"]["streamed_blocks"] == 0
    (warning,) = warnings_of(events)  # so the blocks were compiled as they should be
    assert "no VAE is named" in warning
    assert [event["step"] for event in of_kind(events, "preview")] == [2, 4]
    assert found == pytest.approx(losses, rel=1e-3)
    assert error(found_lora, lora) < SAME
    previews = read_previews(tmp_path, "shown")
    assert error(previews, simple) < ROUNDED
    assert error({0: previews[4]}, {0: previews[2]}) > ROUNDED  # the LoRA has a part in them


def test_a_preview_leaves_no_memory_behind(tmp_path, job: Job):
    """More previews take no more memory."""
    peaks = {}
    for every in (4, 1):
        shown = as_single(job, device="cuda:0", memory=EAGER, previews=replace(PREVIEWS, every=every))
        _, _, events = train(tmp_path, shown, f"every {every}")
        assert len(of_kind(events, "preview")) == {4: 2, 1: 6}[every]
        peaks[every] = of_kind(events, "step")[-1]["allocated_gib"]
    assert peaks[1] <= 1.05 * peaks[4]


# Decoding


@pytest.fixture
def small(tmp_path, job: Job) -> Job:
    """A tiny run with a VAE for its previews, of noise: equal frames would be one in the file."""
    vae = tmp_path / "vae.safetensors"
    save_file(wan_vae(6), vae)
    data = replace(job.data, fps=8.0)
    return as_single(job, device="cuda:0", memory=EAGER, previews=PREVIEWS, preview_vae=str(vae), data=data)


def test_the_run_decodes_on_the_gpu(tmp_path, small: Job):
    pytest.importorskip("diffusers")
    _, _, events = train(tmp_path, small, "run")
    assert warnings_of(events) == []
    shown = of_kind(events, "preview")
    assert [event["path"] for event in shown] == [f"previews/step-{step:08d}.webp" for step in (2, 4, 6)]
    folder, vae = preview_folder(tmp_path, "run"), load_video_encoder(small.preview_vae, "cpu")
    for event in shown:
        expected = vae.decode(folder.read(event["step"])).float().numpy()  # [F, H, W, 3]
        with Image.open(folder.video_path(event["step"])) as video:
            assert (video.n_frames, video.size) == (5, (32, 32))
            frames = []
            for index in range(video.n_frames):
                video.seek(index)
                frames.append(np.asarray(video.convert("RGB"), dtype=np.float32))
        assert expected.std() > 10
        assert np.abs(np.stack(frames) - expected).mean() < 0.5 * expected.std()  # lossy: 0.25 are measured


def test_without_the_package_that_decodes_latents_are_kept(tmp_path, small: Job, monkeypatch):
    quiet, lora, _ = train(tmp_path, replace(small, previews=PreviewOptions(), preview_vae=""), "quiet")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    losses, found_lora, events = train(tmp_path, small, "run")
    (warning,) = warnings_of(events)
    assert "as they can't be decoded" in warning
    assert "diffusers is missing" in warning
    paths = [event["path"] for event in of_kind(events, "preview")]
    assert paths == [f"previews/step-{step:08d}.safetensors" for step in (2, 4, 6)]
    assert losses == pytest.approx(quiet, rel=1e-3)
    assert error(found_lora, lora) < SAME


def test_a_vae_that_the_budget_has_no_room_for_does_not_disturb_the_run(tmp_path, large: Job, reserved):  # noqa: F811
    """One picture of 1024x1024: its decoder's last stage alone is 1 GiB in fp32 on the way."""
    pytest.importorskip("diffusers")
    vae = tmp_path / "vae.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in wan_vae(64).items()}, vae)
    data = replace(large.data, samples=(make_sample(tmp_path, "wide", shape=(16, 1, 128, 128)),))
    job = within_budget(as_single(large, data=data, memory=MemoryOptions(attention="flash", compile="off")))
    losses, lora, _ = train(tmp_path, job, "quiet")
    found, found_lora, events = train(tmp_path, replace(job, previews=PREVIEWS, preview_vae=str(vae)), "shown")
    assert max(*reserved, torch.cuda.max_memory_reserved(CUDA)) <= job.memory.budget_gb * 2**30
    assert len(of_kind(events, "plan")) == 1  # the run keeps its plan
    warnings = warnings_of(events)
    assert warnings
    assert all("as they can't be decoded: CUDA out of memory" in warning for warning in warnings)
    read_previews(tmp_path, "shown")
    assert not list(preview_folder(tmp_path, "shown").path.glob("*.webp"))
    assert found == pytest.approx(losses, rel=1e-3)
    assert error(found_lora, lora) < SAME
