"""The diary in other places: files read back by the trackers' own readers, messages at a real server, nothing twice."""

import json
import struct
import sys

import pytest
from PIL import Image
from wan_train.core.cli.main import main
from wan_train.core.errors import ConfigError
from wan_train.core.settings.track import TrackOptions
from wan_train.core.track.run_facts import read_facts
from wan_train.core.track.tracker import Tracker

NUMBERS = {"train/loss", "train/lr", "train/grad_norm", "train/sigma", "train/seconds", "train/tokens"}


def once(diary, said=None, since=0.0, **options):
    """What `wantrain log` does: everything that the diary has now."""
    tracker = Tracker(
        diary.folder.path, TrackOptions(**options), (said if said is not None else []).append, since=since
    )
    tracker.read()
    tracker.close()
    return tracker


def scalars(folder):
    """{tag: [(step, value)]} by TensorBoard's own reader."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    reader.Reload()
    tags = reader.Tags()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags["scalars"]}, reader


def test_tensorboard_files_hold_every_number(diary, tmp_path):
    diary.steps(1, 3)
    diary.events.write("validation", step=3, loss=0.25, by_sigma={"0.5": 0.2}, seconds=1.0)
    diary.preview(3)
    diary.events.write("finished", lora="x.safetensors")
    said = []
    once(diary, said, tensorboard=str(tmp_path / "boards"))
    assert said == []
    found, reader = scalars(tmp_path / "boards" / "test_low_1a2b")
    assert set(found) == NUMBERS | {"validation/loss", "validation/seconds"}
    assert found["train/loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]
    assert found["validation/loss"] == [(3, 0.25)]
    (picture,) = reader.Images("preview")
    assert (picture.step, picture.width, picture.height) == (3, 24, 16)
    path = tmp_path / "preview.gif"
    path.write_bytes(picture.encoded_image_string)
    with Image.open(path) as shown:
        assert shown.n_frames == 3
        shown.seek(1)
        assert shown.convert("RGB").getpixel((5, 5))[0] > 150


def test_a_name_alone_is_a_folder_beside_the_runs(diary, tmp_path):
    diary.steps(1, 1)
    once(diary, tensorboard="boards")
    assert list((tmp_path / "work" / "boards" / "test_low_1a2b").glob("events.out.tfevents.*"))


def test_a_run_that_goes_on_is_not_logged_twice(diary, tmp_path):
    """Killed at step 5, resumed from the checkpoint of step 3: steps 4 and 5 come again, with the same numbers."""
    boards = str(tmp_path / "boards")
    diary.steps(1, 5)
    once(diary, tensorboard=boards)
    diary.steps(4, 7)
    once(diary, tensorboard=boards)
    once(diary, tensorboard=boards)
    found, _ = scalars(tmp_path / "boards" / "test_low_1a2b")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]


def test_files_that_were_deleted_are_written_anew(diary, tmp_path):
    diary.steps(1, 2)
    once(diary, tensorboard=str(tmp_path / "boards"))
    for file in (tmp_path / "boards" / "test_low_1a2b").iterdir():
        file.unlink()
    once(diary, tensorboard=str(tmp_path / "boards"))
    found, _ = scalars(tmp_path / "boards" / "test_low_1a2b")
    assert [step for step, _ in found["train/loss"]] == [1, 2]


def test_each_prompt_of_a_preview_is_shown_under_a_name_of_its_own(diary, tmp_path):
    diary.steps(1, 4)
    diary.preview(2, prompts=2)
    diary.preview(4)
    diary.events.write("finished", lora="x.safetensors")
    once(diary, [], tensorboard=str(tmp_path / "boards"))
    _, reader = scalars(tmp_path / "boards" / "test_low_1a2b")
    shown = {tag: [picture.step for picture in reader.Images(tag)] for tag in ("preview", "preview_2")}
    assert shown == {"preview": [2, 4], "preview_2": [2]}


def test_a_preview_waits_for_who_decodes_it(diary, tmp_path):
    diary.steps(1, 2)
    diary.preview(2, decoded=False)
    tracker = Tracker(diary.folder.path, TrackOptions(tensorboard=str(tmp_path / "b")), [].append)
    tracker.read()
    diary.decode(2)
    tracker.read()
    tracker.close()
    _, reader = scalars(tmp_path / "b" / "test_low_1a2b")
    assert [picture.step for picture in reader.Images("preview")] == [2]


def test_messages_of_a_webhook(diary, hook):
    diary.steps(1, 2)
    diary.preview(2)
    diary.events.write("error", message="the disk is full")
    diary.steps(3, 4)
    diary.events.write("finished", lora="test_low_noise.safetensors")
    once(diary, webhook=hook.url)
    assert [(m["state"], m["step"], m["loss"]) for m in hook.messages] == [
        ("started", 0, None), ("training", 2, 0.5), ("failed", 2, 0.5), ("started", 2, 0.5), ("finished", 4, 0.25),
    ]  # fmt: skip
    assert hook.messages[2]["text"] == hook.messages[2]["content"]
    assert hook.messages[2]["text"] == "test, low noise: failed, step 2 of 6, loss 0.5000. the disk is full"
    assert (hook.messages[-1]["run"], hook.messages[-1]["stage"], hook.messages[-1]["steps"]) == ("test", "low", 6)
    assert hook.messages[-1]["lora"] == "test_low_noise.safetensors"
    once(diary, webhook=hook.url)
    assert len(hook.messages) == 5  # nothing twice
    assert hook.url not in (diary.folder.path / "track.json").read_text(encoding="utf-8")


def test_a_new_webhook_is_silent_about_the_past_but_not_about_what_it_missed(diary, hook):
    diary.steps(1, 1)
    diary.events.write("stopped", message="stopped")
    first = once(diary, webhook=hook.url, since=2**33)
    assert first.state == "stopped"
    assert hook.messages == []
    diary.steps(2, 2)
    once(diary, webhook=hook.url)
    count = len(hook.messages)
    diary.events.write("finished", lora="x")
    once(diary, webhook=hook.url, since=2**33)
    assert [m["state"] for m in hook.messages[count:]] == ["finished"]


def test_a_webhook_that_fails_is_told_once_and_owes_nothing_for_ever(diary, hook):
    hook.status = 500
    diary.steps(1, 1)
    said = []
    tracker = Tracker(diary.folder.path, TrackOptions(webhook=hook.url), said.append)
    tracker.read()
    diary.preview(1)
    tracker.read()
    hook.status = 200
    diary.events.write("finished", lora="x")
    tracker.read()
    tracker.close()
    assert said == [
        "The webhook is not told of the run, which goes on: HTTPError: HTTP Error 500: Internal Server Error"
    ]
    assert [m["state"] for m in hook.messages] == ["started", "training", "finished"]


def test_an_address_from_the_environment(diary, hook, monkeypatch):
    diary.steps(1, 1)
    said = []
    once(diary, said, webhook="MY_HOOK")
    assert "webhook names the environment variable MY_HOOK, which holds no address here" in said[0]
    monkeypatch.setenv("MY_HOOK", hook.url)
    once(diary, webhook="MY_HOOK")
    assert [m["state"] for m in hook.messages] == ["started"]


@pytest.mark.parametrize("address", ["ftp://x", "file:///etc/passwd", "my hook", "https://"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="webhook is neither an address"):
        TrackOptions(webhook=address)


def test_wandb_offline_keeps_the_run_on_the_disk(diary, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    diary.steps(1, 3)
    diary.events.write("validation", step=3, loss=0.25, by_sigma={}, seconds=1.0)
    diary.preview(3)
    diary.events.write("finished", lora="x")
    said = []
    once(diary, said, wandb="wan", wandb_name="mine")
    assert said == []
    wandb.teardown()  # as at the end of a process: its own one writes to the end
    (offline,) = (diary.folder.path / "wandb").glob("offline-run-*")
    (file,) = offline.glob("*.wandb")
    records = wandb_records(file)
    assert [row["train/loss"] for row in records["history"] if "train/loss" in row] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [row["step"] for row in records["history"] if "validation/loss" in row] == [3]
    assert any(key.startswith("preview") for row in records["history"] for key in row)
    assert records["run"] == ("wan", "mine")
    assert records["config"]["adapter.rank"] == 4
    text = file.read_bytes()
    for secret in (str(tmp_path), "mini.safetensors"):  # paths of the dataset, of the model
        assert secret not in str(records["config"])
    assert b"a caption" not in text


def wandb_records(path):
    """History, config and name of an offline run: records of wandb's own protocol in a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    found = {"history": [], "config": {}, "run": None}
    for data in leveldb_log(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found["history"].append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif record.WhichOneof("record_type") == "run":
            found["run"] = (record.run.project, record.run.display_name)
            found["config"].update({i.key: json.loads(i.value_json) for i in record.run.config.update})
    return found


def leveldb_log(data, header=7, block=32768):
    """Records of a log: chunks of (crc 4, length 2, kind 1), kind 1 whole, 2 to 4 first, middle and last."""
    at, parts = header, []
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def test_a_missing_package_is_told_with_its_command(diary, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = []
    once(diary, said, tensorboard="boards")
    assert len(said) == 1
    assert "TensorBoard files need the package tensorboard" in said[0]
    assert "pip install --upgrade tensorboard" in said[0]


def test_facts_hold_no_captions_and_no_paths(diary, tmp_path):
    facts = read_facts(diary.folder.path)
    assert (facts.name, facts.stage, facts.steps, facts.title) == ("test", "low", 6, "test, low noise")
    assert facts.settings["optimizer.learning_rate"] == 1e-2
    assert str(tmp_path) not in str(facts.settings)


def test_log_on_the_command_line(diary, tmp_path, capsys, caplog):
    diary.steps(1, 3)
    diary.events.write("finished", lora="x")
    assert main(["log", str(diary.folder.path), "--tensorboard", str(tmp_path / "b"), "--follow"]) == 0
    assert "test, low noise: 5 events read for TensorBoard" in capsys.readouterr().out
    assert [step for step, _ in scalars(tmp_path / "b" / "test_low_1a2b")[0]["train/loss"]] == [1, 2, 3]
    assert main(["log", str(diary.folder.path)]) == 1
    assert "say where to: --tensorboard FOLDER" in caplog.text
    assert main(["log", str(tmp_path), "--tensorboard", "b"]) == 1
    assert "is no run folder: its job.json can't be read" in caplog.text
