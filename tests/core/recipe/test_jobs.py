"""Jobs that somebody else wrote: refused by a sentence before anything is written, or trained where the user says."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.cli.main import main
from wan_train.core.errors import WanTrainError
from wan_train.core.recipe.jobs import holds_job, places, plan_existing
from wan_train.core.serial import to_dict
from wan_train.core.settings.job import job_to_json


def as_lora(path, text):
    save_file({"x": torch.zeros(1)}, path, metadata={"wantrain.job": text})
    return path


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(name="../../evil"), "name is '../../evil'"),
        (lambda d: d.update(name="/tmp/evil"), "name is '/tmp/evil'"),
        (lambda d: d["adapter"].update(rank=10**9), "rank must be at most 4096, got 1000000000"),
        (
            lambda d: d["data"]["samples"][0].update(repeats=10**12),
            "the dataset comes to .* samples an epoch, and 1000000",
        ),
        (lambda d: d["data"]["samples"][0].update(shape=[16, 1, 0, 4]), "which no model takes"),
        (lambda d: d["data"]["samples"][0].update(shape=[16, 2, 4, 6]), r"latents of the shape \[16, 2, 4, 4\]"),
        (lambda d: d["optimizer"].update(beta1=1.0), "beta1 must be below 1, got 1.0"),
        (lambda d: d["optimizer"].update(weight_decay=float("nan")), "weight_decay must be at least 0, got nan"),
        (lambda d: d["optimizer"].update(learning_rate=10**400), "too large for a number"),
        (lambda d: d["timesteps"].update(strata=10**12), "timestep_strata must be at most 10000"),
        (lambda d: d["loop"].update(seed=2**70), "seed must be at most"),
        (lambda d: d["memory"].update(ffn_pieces=10**6), "ffn_pieces must be at most 1024, got 1000000"),
        (lambda d: d.update(device="meta"), "the device 'meta' is not known"),
        (
            lambda d: d["model"].update(path="/dev/zero"),
            "'/dev/zero', which|'/dev/zero' is a device|neither a .safetensors",
        ),
        (lambda d: d["model"].update(path="x" * 5000), "path of 5000 characters"),
        (lambda d: d["model"].update(path="a\0.safetensors"), "holds characters that no file name has"),
        (lambda d: d["data"].update(empty_text_path="\ud800"), "holds characters that no file name has"),
        (
            lambda d: d["previews"].update(every=1) or d.update(preview_vae="/x/vae.pth"),
            "preview_vae is /x/vae.pth, a pickle",
        ),
        (lambda d: d["data"].update(fps=0.0), "data.fps is 0.0"),
        (lambda d: d.update(trigger_word="x" * 5000), "a name of 5000 characters"),
        (
            lambda d: d["optimizer"].update(name="custom", path="subprocess.Popen", args="args='id'"),
            "the package subprocess is not among those whose optimizers may run on this machine",
        ),
        (lambda d: d["optimizer"].update(name="muon", args="ns_steps=" + "1" * 5000), "a text of 5009 characters"),
    ],
)
def test_a_strangers_job_is_refused_before_anything_is_written(job, tmp_path, edit, message):
    data = json.loads(job_to_json(job))
    edit(data)
    place = tmp_path / "received"
    place.mkdir()
    lora = as_lora(place / "lora.safetensors", json.dumps(data))
    before = files_of(tmp_path)
    with pytest.raises(WanTrainError, match=message):
        plan_existing(lora, None, [])
    (place / "job.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(WanTrainError, match=message):
        plan_existing(place, None, [])
    (place / "job.json").unlink()
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("5", "must be an object"),
        ('{"a":' * 40 + "1" + "}" * 40, "more than 32 levels"),
        ("{", "not valid JSON"),
    ],
)
def test_text_that_is_no_job_is_refused(tmp_path, text, message):
    with pytest.raises(WanTrainError, match=message):
        plan_existing(as_lora(tmp_path / "x.safetensors", text), None, [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names on Windows")
def test_a_pipe_is_never_opened(job, tmp_path, caplog):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for field in ("path", "recovery_adapter"):
        spoilt = replace(job, model=replace(job.model, **{field: str(pipe), "precision": "ara"}))
        with pytest.raises(WanTrainError, match="is a pipe"):
            plan_existing(as_lora(tmp_path / "x.safetensors", job_to_json(spoilt)), None, [])
    with pytest.raises(WanTrainError, match="is a pipe"):
        holds_job(pipe)
    assert main(["train", "/dev/zero"]) == 1
    assert "is a device" in caplog.text


def test_a_good_job_goes_where_the_user_says_and_its_files_are_told(job, tmp_path):
    lora = as_lora(tmp_path / "x.safetensors", job_to_json(job))
    planned = plan_existing(lora, tmp_path / "work", [])
    assert planned.folder.path.parent == tmp_path / "work" / "runs"
    assert planned.job == job
    told = places(replace(planned.job, preview_vae="/a\x1b[2J/vae.safetensors"))
    assert f"model.path: {job.model.path}" in told
    assert "preview_vae: /a�[2J/vae.safetensors" in told
    assert f"cached samples: {tmp_path}" in told
    custom = replace(job, optimizer=replace(job.optimizer, name="custom", path="torch.optim.SGD\x1b"))
    assert "optimizer_class, whose code is run: torch.optim.SGD�" in places(custom)


def test_a_damaged_job_beside_a_lora_is_not_its_run(job, tmp_path):
    lora = as_lora(tmp_path / "x.safetensors", job_to_json(job))
    (tmp_path / "job.json").write_text("{", encoding="utf-8")
    assert plan_existing(lora, tmp_path / "work", []).folder.path.parent == tmp_path / "work" / "runs"


def test_the_key_of_a_job_is_what_it_was(job):
    """Bounds decide nothing about the weights: runs of before are found."""
    assert job.key == type(job)(**job.__dict__).key
    assert to_dict(job)["schema"] == 2
