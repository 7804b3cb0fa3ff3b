"""Damaged checkpoints are told wherever checkpoints are listed, and files are read once."""

import json
import os
from dataclasses import replace

import pytest
import torch
from wan_train.core.cli.main import main
from wan_train.core.errors import ConfigError
from wan_train.core.train import sound
from wan_train.core.train.catalogue import Catalogue
from wan_train.core.train.checkpoints import ADAPTER, AVERAGE, MANIFEST, STATE
from wan_train.core.train.chosen import average_checkpoints, described_lora
from wan_train.core.train.claim import claim_run
from wan_train.core.train.compare import choose_steps, left_out, loras_of, pairs_of
from wan_train.core.train.events import EventWriter
from wan_train.core.train.partway import keep_newest, named_checkpoint
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.scores import score_run
from wan_train.core.train.sound import damage


@pytest.fixture
def folder(tmp_path, job):
    made = RunFolder(tmp_path / "runs" / f"{job.name}_{job.stage}_{job.key}")
    made.path.mkdir(parents=True)
    made.write_job(job)
    for step in (2, 4, 6):
        adapter = {"a": torch.full((100,), float(step))}
        made.checkpoint_store.save(
            step, adapter, {"step": step}, keep_last=9, training=job.key, average=adapter if step == 2 else None
        )
    diary = EventWriter(made.events_path)
    for step in (2, 4, 6):
        diary.write("step", step=step, loss=0.5)
        diary.write("validation", step=step, loss=1.0 / step, by_sample=[1.0 / step] * 3)
    return made


def flip(path, at=-1):
    """Another bit, with the same size and time."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def at(folder, step):
    return folder.checkpoints_path / f"step-{step:08d}"


@pytest.mark.parametrize("name", [ADAPTER, AVERAGE, STATE, MANIFEST])
def test_each_file_is_held_against_what_was_noted(folder, name):
    assert damage(at(folder, 2)) == ""
    (at(folder, 2) / sound.CHECKED).unlink()
    flip(at(folder, 2) / name, at=60)
    assert name in damage(at(folder, 2)) or name == MANIFEST
    assert "sha256" in damage(at(folder, 2)) or name == MANIFEST
    assert damage(at(folder, 4)) == ""
    os.truncate(at(folder, 4) / name, 70) if name != AVERAGE else (at(folder, 2) / name).unlink()
    assert damage(at(folder, 2 if name == AVERAGE else 4), read=False)


def test_a_file_is_read_once_until_it_is_another(folder, monkeypatch):
    path, read = at(folder, 4), []

    def digest(file):
        read.append(file.name)
        return original(file)

    original = sound.file_digest
    monkeypatch.setattr(sound, "file_digest", digest)
    assert damage(path, read=False) == ""
    assert read == []
    assert damage(path) == damage(path) == ""
    assert read == [ADAPTER, STATE]
    data = bytearray((path / ADAPTER).read_bytes())
    data[-1] ^= 1
    (path / ADAPTER).write_bytes(data)
    os.utime(path / ADAPTER, ns=(1, 1))
    assert damage(path, read=False) == ""  # not known yet
    assert "sha256" in damage(path)
    assert "sha256" in damage(path, read=False)
    assert read == [ADAPTER, STATE, ADAPTER]


def test_a_checkpoint_of_an_earlier_version_is_held_against_its_header(folder):
    (at(folder, 4) / MANIFEST).unlink()
    assert damage(at(folder, 4)) == ""
    os.truncate(at(folder, 4) / ADAPTER, 300)
    assert "bytes expected" in damage(at(folder, 4))


def test_the_list_says_which_are_damaged_and_proposes_none_of_them(folder, job, capsys):
    assert score_run(folder, job).best.step == 6
    for path, name in ((at(folder, 6), ADAPTER), (at(folder, 4), STATE)):
        (path / sound.CHECKED).unlink()
        flip(path / name)
    assert score_run(folder, job).best.step == 4
    assert main(["checkpoints", str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert "step 6 is damaged (adapter.safetensors has another sha256" in said
    assert "step 4: its LoRA is sound, but no run can go on from it (state.pt has another sha256" in said
    assert said.rstrip().endswith("best: step 4; lowest held-out loss: step 4")
    assert main(["checkpoints", str(folder.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [bool(row["damage"]) for row in rows] == [False, False, True]


def test_no_lora_is_taken_from_a_damaged_one(folder, job):
    flip(at(folder, 6) / ADAPTER)
    name = f"{folder.path.name} / step 6"
    with pytest.raises(ConfigError, match=r"step 6 of .* is damaged .*: choose another"):
        named_checkpoint(folder.path.parent, name)
    with pytest.raises(ConfigError, match="is damaged"):
        described_lora(at(folder, 6) / ADAPTER)
    with pytest.raises(ConfigError, match="move its folder away"):
        average_checkpoints(folder, [1.0] * 3, "mean")
    there = list(loras_of(folder))
    assert choose_steps("all", folder, there) == [2, 4]
    assert choose_steps("last 1", folder, there) == [4]
    with pytest.raises(ConfigError, match=r"step 6 of .* is damaged"):
        choose_steps("2, 6", folder, there)
    (sentence,) = left_out([folder, None])
    assert "step 6" in sentence
    assert [pair.low.step for pair in pairs_of(None, folder, "all")] == [2, 4]
    assert keep_newest(folder, job)[0] == 4


def test_the_list_of_runs_says_so_too(folder):
    (entry,) = Catalogue(folder.path.parent).entries()
    assert "damaged" not in entry.why
    os.truncate(at(folder, 4) / ADAPTER, 100)
    flip(at(folder, 2) / ADAPTER)
    assert damage(at(folder, 2))
    (entry,) = Catalogue(folder.path.parent).entries()
    folder.clear_stop()
    assert entry.why.startswith("the training process has ended")  # more urgent
    EventWriter(folder.events_path).write("stopped", step=6)
    listed = Catalogue(folder.path.parent)
    (entry,) = listed.entries()
    assert entry.why.startswith("the checkpoints of steps 2, 4 are damaged")


def test_a_run_starts_from_a_sound_checkpoint_of_another(folder, job):
    """And not from step 0, because the furthest one is damaged."""
    flip(at(folder, 6) / STATE)
    claim = claim_run(folder.path.parent, replace(job, name="other"))
    claim.release()
    assert claim.origin is not None
    assert claim.origin.step == 4
    assert [step for step, _ in claim.folder.checkpoints()] == [4]
