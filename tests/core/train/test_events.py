import json
import shutil
import subprocess

import pytest
from wan_train.core.errors import RunError
from wan_train.core.train import events
from wan_train.core.train.events import EventReader, EventWriter, format_event, parse_event, read_history


def test_reader_follows_the_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read() == []
    writer = EventWriter(path)
    writer.write("step", step=1, loss=0.5)
    assert [e["step"] for e in reader.read()] == [1]
    assert reader.read() == []
    writer.write("step", step=2, loss=0.4)
    assert [e["step"] for e in reader.read()] == [2]


def test_a_line_cut_short_is_passed_over_and_the_next_one_is_not_lost(tmp_path):
    path = tmp_path / "events.jsonl"
    EventWriter(path).write("step", step=1, loss=0.5)
    with path.open("ab") as file:
        file.write(b'{"event": "step", "ste')
    assert len(EventReader(path).read()) == 1  # an incomplete line waits
    EventWriter(path).write("step", step=2, loss=0.4)
    assert [e["step"] for e in EventReader(path).read()] == [1, 2]


def test_history_of_a_crash_counts_the_last_attempt(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("start", step=0)
    for step, loss in [(1, 1.0), (2, 2.0), (3, 3.0)]:
        writer.write("step", step=step, loss=loss)
    writer.write("start", step=1)  # resumed from the checkpoint of step 1
    assert read_history(path).losses == {1: 1.0}
    writer.write("step", step=2, loss=20.0)
    writer.write("validation", step=2, loss=0.7)
    writer.write("warning", message="w")
    writer.write("warning", message="w")
    writer.write("finished", lora="x.safetensors")
    history = read_history(path)
    assert history.losses == {1: 1.0, 2: 20.0}
    assert history.validation == {2: 0.7}
    assert history.warnings == ["w"]
    assert history.state == "finished"


BAD = [
    b"\xff\xfe\x00",
    b"5",
    b"null",
    b"[]",
    b'"step"',
    b"[" * 100_000,
    b'{"event":' * 5000 + b"1" + b"}" * 5000,
    b'{"event": "step", "time": 1.0, "step": 1, "loss": NaN}',
    b'{"event": "step", "time": 1.0, "step": 1, "loss": -Infinity}',
    b'{"event": "step", "time": 1.0, "step": 1, "loss": 1e999}',
    b'{"event": "step", "time": 1.0, "step": ' + b"9" * 400 + b', "loss": 1.0}',
    b'{"event": "step", "time": 1.0, "step": ' + b"9" * 5000 + b', "loss": 1.0}',
    b'{"event": "step", "time": 1.0, "step": "1", "loss": 1.0}',
    b'{"event": "step", "time": 1.0, "step": true, "loss": 1.0}',
    b'{"event": "step", "time": 1.0, "step": 1}',
    b'{"event": "step", "time": 1.0, "step": 1, "loss": 1.0, "lr": "fast"}',
    b'{"event": "start", "step": 0}',
    b'{"event": "start", "time": "now", "step": 0}',
    b'{"event": "start", "time": 1.0}',
    b'{"event": 5, "time": 1.0}',
    b'{"time": 1.0}',
    b'{"event": "warning", "time": 1.0, "message": null}',
    b'{"event": "finished", "time": 1.0, "message": 5}',
    b'{"event": "preview", "time": 1.0, "step": 1}',
    b"x" * (2**20 + 5),
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_line_that_is_no_event_is_passed_over_and_counted(tmp_path, line):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("start", step=0)
    with path.open("ab") as file:
        file.write(line + b"\n")
    writer.write("step", step=2, loss=0.4)
    reader = EventReader(path)
    assert [event["event"] for event in reader.read()] == ["start", "step"]
    assert reader.damaged == 1
    history = read_history(path)
    assert history.losses == {2: 0.4}
    assert history.warnings == [
        f"1 line is damaged in {path}, and passed over: what it told may miss in curves and notes."
    ]


def test_no_flipped_bit_of_a_line_tells_something_else(tmp_path):
    event = {"event": "step", "time": 12.5, "step": 17, "loss": 0.25, "lr": 1e-4, "seconds": 0.5}
    line = format_event(event)
    path = tmp_path / "events.jsonl"
    for position in range(len(line)):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped + b"\n")
            for found in EventReader(path).read():
                assert event.items() <= found.items()


def test_lines_of_earlier_versions_have_no_checksum_and_are_read():
    event = {"event": "step", "time": 12.5, "step": 17, "loss": 0.25}
    assert parse_event(json.dumps(event).encode()) == event


def test_events_of_later_kinds_are_passed_on():
    assert parse_event(b'{"event": "mood", "time": 1.0, "step": "low"}') == {
        "event": "mood",
        "time": 1.0,
        "step": "low",
    }


def test_numbers_that_json_does_not_know_are_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    EventWriter(path).write("step", step=1, loss=0.5, grad_norm=float("nan"), by_sigma=[float("inf"), 1.0])
    (event,) = EventReader(path).read()
    assert event["grad_norm"] is None
    assert event["by_sigma"] == [None, 1.0]


def test_a_diary_that_was_replaced_by_a_shorter_one_is_read_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    for step in range(5):
        writer.write("step", step=step, loss=0.5)
    reader = EventReader(path)
    reader.read()
    path.unlink()
    EventWriter(path).write("start", step=0)
    assert [event["event"] for event in reader.read()] == ["start"]


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_on_a_full_disk_lines_wait_for_room(small_disk):
    path = small_disk / "run" / "events.jsonl"
    path.parent.mkdir()
    writer = EventWriter(path)
    writer.write("start", step=0)
    fill(small_disk)
    for step in range(1, 101):
        writer.write("step", step=step, loss=0.5)
    assert writer.trouble is not None
    assert f"The disk with {path.parent} is full" in writer.sentence("nothing is lost")
    (small_disk / "filler").unlink()
    writer.write("step", step=101, loss=0.5)
    assert writer.trouble is None
    reader = EventReader(path)
    assert [event["step"] for event in reader.read()] == list(range(102))
    assert reader.damaged == 0


@pytest.mark.parametrize("number", [3, 400])
def test_last_words_find_room_on_a_full_disk(small_disk, number):
    path = small_disk / "run" / "events.jsonl"
    path.parent.mkdir()
    writer = EventWriter(path)
    fill(small_disk)
    for step in range(number):
        writer.write("step", step=step, loss=0.5, text="x" * 500)
    writer.write("error", message="the disk is full")
    history = read_history(path)
    assert (history.state, history.message) == ("error", "the disk is full")
    assert history.warnings == []
    assert [file.name for file in path.parent.iterdir()] == ["events.jsonl"]


def test_on_a_disk_that_became_read_only_nothing_is_raised(small_disk):
    path = small_disk / "events.jsonl"
    writer = EventWriter(path)
    if subprocess.run(["mount", "-o", "remount,ro", small_disk], check=False).returncode:
        pytest.skip("remounting is not permitted here")
    writer.write("step", step=1, loss=0.5)
    writer.write("error", message="read-only")
    assert "read-only" in writer.sentence("nothing was changed")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    writer.write("stopped")
    assert [event["event"] for event in EventReader(path).read()] == ["step", "error", "stopped"]


def test_too_many_waiting_lines_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MAX_WAITING", 3)
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    path.mkdir()  # what can't be written to, whoever one is
    for step in range(4):
        assert not writer.is_overfull
        writer.write("step", step=step, loss=0.5)
    assert writer.is_overfull


def test_a_run_folder_that_is_gone_ends_the_run_with_a_sentence(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    writer = EventWriter(folder / "events.jsonl")
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="is gone: it was deleted"):
        writer.write("step", step=1, loss=0.5)
