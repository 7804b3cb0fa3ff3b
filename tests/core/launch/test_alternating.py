"""Two runs that take turns on one device: who has it when, and that each learns what it learns alone."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.launch.alternating import AlternatingTurn
from wan_train.core.launch.exits import EXIT_FINISHED, EXIT_STOPPED
from wan_train.core.launch.process import Worker
from wan_train.core.locks import FileLock
from wan_train.core.train.events import EventReader
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.turns import turn_on_cpu, waits_of

EVERY, STEPS = 4, 48


@pytest.fixture
def turn(tmp_path):
    """Makes turns of runs on one device."""
    made = []

    def of(*, alternates=True):
        made.append(AlternatingTurn(FileLock(tmp_path / "device.lock"), alternates=alternates))
        return made[-1]

    yield of
    for each in made:
        each.release()


def test_the_one_that_waits_is_seen_and_gets_the_device_next(turn):
    first, second = turn(), turn()
    assert first.acquire()
    assert not first.is_wanted()
    assert not second.acquire()
    assert first.is_wanted()
    asked = []

    def ask():
        asked.append(second.acquire())
        return len(asked) > 1

    assert not first.hand_over(ask)  # asked a second time, it stops
    assert asked == [True, False]
    assert (first.has_waited, second.has_waited) == (False, True)


def test_handed_over_it_comes_back(turn):
    first, second = turn(), turn()
    assert first.acquire()
    assert not second.acquire()

    def ask():
        if second.acquire():
            second.release()
        return False

    assert first.hand_over(ask)
    assert not first.is_wanted()


def test_a_run_that_does_not_alternate_is_not_handed_the_device_and_lets_those_go_first_that_do(turn):
    first, second, other = turn(), turn(), turn(alternates=False)
    assert first.acquire()
    assert not other.acquire()
    assert not first.is_wanted()
    assert not second.acquire()
    first.release()
    assert not other.acquire()
    assert second.acquire()
    second.release()
    assert other.acquire()
    assert not other.is_wanted()


def test_those_that_are_gone_are_not_waited_for(turn):
    first, second = turn(), turn()
    assert first.acquire()
    assert not second.acquire()
    second.release()  # as the system does when a process dies
    assert not first.is_wanted()


def begin(folder: Path, job, **changes) -> RunFolder:
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write_job(replace(job, **changes))
    return run


def lora_of(run):
    return load_file(run.finished_lora(STEPS))


def same(one, other):
    one, other = lora_of(one), lora_of(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def times(run, kind):
    return [event["time"] for event in EventReader(run.events_path).read() if event["event"] == kind]


def turns_of(run):
    """(step, when it went, when it was back) of each turn of the other run that came to its end."""
    found = [event for event in EventReader(run.events_path).read() if event["event"] == "turn"]
    pairs = [(one, two) for one, two in pairwise(found) if "away_s" in two]
    return [(back["step"], away["time"], back["time"]) for away, back in pairs]


def until(holds, what):
    end = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < end, f"this did not come: {what}"
        time.sleep(0.02)


@pytest.mark.grid(3, "turns of two processes")
def test_two_processes_in_turns_learn_what_each_learns_alone(tmp_path, job):
    """Also when one is stopped on the way, in a turn of another's: it goes on from its checkpoint."""
    loop = replace(job.loop, steps=STEPS, checkpoint_every=1000)
    jobs = [replace(job, loop=loop), replace(job, loop=replace(loop, seed=7), stage="high")]
    alone = [begin(tmp_path / "alone" / str(number), each) for number, each in enumerate(jobs)]
    both = [begin(tmp_path / "both" / str(number), each, alternate_every=EVERY) for number, each in enumerate(jobs)]

    def start(run):
        return Worker(run, environment=dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path))).process

    for run in alone:
        assert start(run).wait() == EXIT_FINISHED
    with turn_on_cpu(tmp_path) as turn:
        assert turn.acquire()
        one = start(both[0])
        until(lambda: waits_of(both[0].events_path) == 1, "it waits")
        turn.release()
        until(turn.acquire, "it has handed over")  # to the test: there is nobody else
        both[0].request_stop()
        assert one.wait() == EXIT_STOPPED
        assert 0 < both[0].checkpoints()[-1][0] < STEPS
        one, other = map(start, both)  # neither goes on before both are there
        for number, run in zip((2, 1), both, strict=True):
            until(lambda run=run, number=number: waits_of(run.events_path) == number, "both wait")
    assert (one.wait(), other.wait()) == (EXIT_FINISHED, EXIT_FINISHED)
    assert [same(*pair) for pair in zip(alone, both, strict=True)] == [True, True]
    for run, neighbour in (both, both[::-1]):
        turns, steps = turns_of(run), times(neighbour, "step")
        assert len(turns) > 2
        assert {step % EVERY for step, _, _ in turns} == {0}
        assert sum(any(away <= step <= back for step in steps) for _, away, back in turns) > 2
