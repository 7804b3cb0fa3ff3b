import itertools
import json
import math
import threading

import pytest
from wan_train.core.train.events import EventWriter, read_history
from wan_train.core.train.history import MAX_POINTS, Curve, Histories, HistoryReader, read_long_history


def curve(losses):
    made = Curve()
    for step, loss in enumerate(losses, 1):
        made[step] = loss
    return made


def diary(path):
    """A run that was killed after step 5, went on from 3, warned, and was finished."""
    writer = EventWriter(path)
    writer.write("start", step=0)
    writer.write("status", message="loading")
    for step in range(1, 6):
        writer.write("step", step=step, loss=1.0 / step, lr=1e-3)
    writer.write("validation", step=4, loss=0.4)
    writer.write("warning", message="slow")
    writer.write("plan", message="less memory", step=5)
    writer.write("start", step=3)
    writer.write("warning", message="slow")
    writer.write("step", step=4, loss=9.0, lr=1e-3)
    return writer


def values(history):
    names = ("losses", "validation", "warnings", "last_step", "state", "message")
    return {name: getattr(history, name) for name in names}


def test_a_short_diary_gives_what_read_history_gives(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = diary(path)
    for change in (
        lambda: None,
        lambda: writer.write("finished", message="done"),
        lambda: writer.write("start", step=4),
    ):
        change()
        expected, found = values(read_history(path)), values(read_long_history(path))
        expected = {name: dict(value) if isinstance(value, dict) else value for name, value in expected.items()}
        assert {name: dict(v) if name in ("losses", "validation") else v for name, v in found.items()} == expected


def test_a_second_look_reads_only_what_is_new(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = diary(path)
    reader = HistoryReader(path)
    first = reader.read()
    assert dict(first.losses) == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 9.0}
    old = path.read_bytes()
    path.write_bytes(old[:256] + b"#" * (len(old) - 257) + b"\n")  # what was read is not read again
    writer.write("step", step=5, loss=3.0)
    assert dict(reader.read().losses) == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 9.0, 5: 3.0}
    assert reader.skipped == 0


def test_a_line_that_is_not_whole_yet_waits(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "step", "time": 1.0, "step": 1, "lo')
    reader = HistoryReader(path)
    assert not reader.read().losses
    with path.open("ab") as file:
        file.write(b'ss": 0.5}\n')
    assert dict(reader.read().losses) == {1: 0.5}
    assert reader.skipped == 0


def test_a_diary_that_was_replaced_or_removed_is_read_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = HistoryReader(path)
    assert reader.read().state == "new"
    diary(path)
    assert len(reader.read().losses) == 4
    path.unlink()
    assert reader.read().state == "new"
    EventWriter(path).write("step", step=7, loss=0.7)
    assert dict(reader.read().losses) == {7: 0.7}
    path.unlink()
    for step in range(100):
        EventWriter(path).write("step", step=step, loss=0.1)
    assert len(reader.read().losses) == 100


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00", b"5", b"null", b"[]", b'"text"', b"{}", b"{" * 200_000, b"[" * 200_000, b'{"event": "step"}',
        b'{"event": "step", "step": 1}', b'{"event": "step", "step": "x", "loss": 1}',
        b'{"event": "step", "step": [], "loss": 1}',
        b'{"event": "step", "step": 1e400, "loss": 1}', b'{"event": "step", "step": ' + b"9" * 300 + b', "loss": 1}',
        b'{"event": "status"}', b'{"event": "warning"}', b'{"event": "start", "step": {}}', b'{"event": ["step"], "step": 1}',
        b'{"event": "step", "st', b"x" * 3_000_000,
    ],
    ids=lambda line: line[:40].decode("latin1"),
)  # fmt: skip
def test_a_line_that_is_no_event_is_passed_over(tmp_path, line):
    path = tmp_path / "events.jsonl"
    diary(path)
    with path.open("ab") as file:
        file.write(line + b"\n")
    EventWriter(path).write("step", step=5, loss=3.0)
    reader = HistoryReader(path)
    assert dict(reader.read().losses) == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 9.0, 5: 3.0}
    assert reader.skipped <= 1
    assert reader.read().last_step["step"] == 5


def test_a_curve_is_a_mapping_in_ascending_order():
    made = Curve()
    for step, loss in [(1, 1.0), (5, 5.0), (3, 3.0), (5, 6.0), (7, 7.0)]:
        made[step] = loss
    assert dict(made) == {1: 1.0, 3: 3.0, 5: 6.0, 7: 7.0}
    assert made.last_step == 7
    assert made.points() == [(1, 1.0), (3, 3.0), (5, 6.0), (7, 7.0)]
    del made[3]
    made.cut(6)
    assert dict(made) == {1: 1.0, 5: 6.0}
    assert 3 not in made
    made.cut(0)
    assert (made.last_step, dict(made)) == (0, {})


def test_a_thinned_curve_keeps_ends_and_peaks():
    losses = [0.5 + 0.1 * (i % 7) for i in range(100_000)]
    losses[33_333], losses[66_666], losses[0], losses[-1] = 50.0, -3.0, 2.0, 2.5
    points = curve(losses).thinned()
    assert len(points) <= MAX_POINTS
    assert points == sorted(points)
    assert {(1, 2.0), (33_334, 50.0), (66_667, -3.0), (100_000, 2.5)} <= set(points)
    assert all(losses[step - 1] == loss for step, loss in points)
    widest = max(b[0] - a[0] for a, b in itertools.pairwise(points))
    assert widest <= 2 * math.ceil(100_000 / (MAX_POINTS / 2 - 1))


def test_a_short_curve_is_left_whole():
    losses = [0.1 * i for i in range(MAX_POINTS)]
    made = curve(losses)
    assert [loss for _, loss in made.thinned()] == losses
    assert made.smoothed(0) == []


def test_what_is_no_number_is_not_sent_to_a_page():
    made = curve([1.0, math.nan, 2.0, math.inf, -math.inf])
    assert made.thinned() == [(1, 1.0), (3, 2.0)]
    made = curve([math.nan if i % 10 else 1.0 for i in range(30_000)])
    json.dumps([made.thinned(), made.smoothed(0)], allow_nan=False)


def test_averages_of_a_thinned_curve_are_those_of_all_points():
    """As web/chart.js has them, which sees only the kept points."""
    losses = [math.sin(i) + 5 * (i % 97 == 0) for i in range(5000)]
    beta, mean, weight, expected = 1 - 1 / 100, 0.0, 1.0, {}
    for step, loss in enumerate(losses, 1):
        mean, weight = beta * mean + (1 - beta) * loss, weight * beta
        expected[step] = mean / (1 - weight)
    made = curve(losses)
    smoothed = made.smoothed(5000)
    assert [step for step, _ in smoothed] == [step for step, _ in made.thinned()]
    assert all(math.isclose(average, expected[step], rel_tol=1e-9) for step, average in smoothed)


def test_the_runs_looked_at_last_are_kept(tmp_path):
    histories = Histories(most=2)
    a, b, c = (tmp_path / name for name in "abc")
    first, second = histories.reader(a), histories.reader(b)
    assert histories.reader(a) is first
    histories.reader(c)
    assert histories.reader(a) is first
    assert histories.reader(b) is not second


def test_threads_that_look_while_a_run_goes_on_get_one_history(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    for step in range(1, 3001):
        writer.write("step", step=step, loss=0.5)
    reader, found = HistoryReader(path), []

    def look():
        for _ in range(20):
            with reader.reading() as history:
                found.append((len(history.losses), history.losses.thinned()[-1][0]))
            writer.write("step", step=found[-1][0] + 1, loss=0.5)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert min(length for length, _ in found) == 3000
    assert all(length == last for length, last in found)
