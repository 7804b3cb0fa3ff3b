"""torchrun's agent as a run uses it, with small programs in the place of ranks."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from wan_train.core.launch import agent as module
from wan_train.core.launch.agent import Agent, Connection, MachineGroup, Rendezvous, RunMachine, open_store
from wan_train.core.launch.exits import EXIT_LESS_MEMORY, EXIT_LOST_RANK

BEGIN = """
import os, signal, sys, time
rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("hello of", rank, start, flush=True)
def place(number):
    return os.path.join(os.environ["FOLDER"], f"{number}-{start}")
with open(place(rank) + ".new", "w") as file:
    file.write(str(os.getpid()))
os.replace(place(rank) + ".new", place(rank))
while not all(map(os.path.exists, map(place, range(2)))):
    time.sleep(0.01)  # else the one that is late may be ended because of the other before it was there
"""


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Runs a program in two ranks: the outcome, what was told, and the ranks' process numbers by "rank-start"."""
    monkeypatch.setenv("FOLDER", str(tmp_path / "seen"))
    monkeypatch.setattr(module, "GRACE_AFTER_SILENCE_S", 0.2)
    (tmp_path / "seen").mkdir()

    def run(program, *, may_restart=True, connection=None):
        told = []
        store = open_store("127.0.0.1", 0, is_server=True)
        rendezvous = Rendezvous(store, MachineGroup(), RunMachine("here", ("cpu:0", "cpu:1")))
        agent = Agent(
            [sys.executable, "-c", BEGIN + program],
            rendezvous,
            ranks=2,
            logs=tmp_path / "logs",
            on_start=lambda: told.append("start"),
            on_restart=lambda: told.append("restart"),
            should_restart=lambda: may_restart,
            connection=connection,
        )
        outcome = agent.train()
        pids = {path.name: int(path.read_text()) for path in (tmp_path / "seen").iterdir()}
        assert not [pid for pid in pids.values() if psutil.pid_exists(pid)]
        return outcome, told, pids

    return run


def codes(outcome):
    return {end.rank: end.code for end in outcome.ended}


def test_all_end_well(train, capfd):
    outcome, told, pids = train("")
    assert (outcome.is_finished, outcome.ended, told) == (True, [], ["start"])
    assert sorted(pids) == ["0-0", "1-0"]
    said = capfd.readouterr().out
    assert "[rank 0] hello of 0 0" in said
    assert "[rank 1] hello of 1 0" in said


def test_what_asks_for_less_memory_is_started_again(train):
    outcome, told, pids = train(f"if start < 2: sys.exit({EXIT_LESS_MEMORY})")
    assert outcome.is_finished
    assert told == ["start", "restart", "start", "restart", "start"]
    assert sorted(pids) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]


def test_not_when_a_stop_was_asked_for(train):
    outcome, told, _ = train(f"sys.exit({EXIT_LESS_MEMORY})", may_restart=False)
    assert (outcome.is_finished, told) == (False, ["start"])
    assert set(codes(outcome).values()) == {EXIT_LESS_MEMORY}


def test_nothing_else_is_started_again(train):
    outcome, told, _ = train("if rank == 1: sys.exit(1)")
    assert (outcome.is_finished, told, codes(outcome)) == (False, ["start"], {1: 1})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_the_others_end_by_themselves_after_a_kill(train):
    """They are not told to: they notice, and say what they know, before they end with a code of their own."""
    program = f"""
if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.4)
sys.exit({EXIT_LOST_RANK})
"""
    assert codes(train(program)[0]) == {1: -9, 0: EXIT_LOST_RANK}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_who_hangs_is_ended(train):
    outcome, _, _ = train(f"sys.exit({EXIT_LOST_RANK}) if rank == 0 else time.sleep(1000)")
    assert outcome.ended[0].code == EXIT_LOST_RANK


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_machine_that_is_cut_off_ends_its_ranks(train):
    class Silent(Connection):
        def __init__(self):
            self._answered, self._silence = time.monotonic(), 0.0

        @property
        def is_lost(self):
            are_there = all(Path(os.environ["FOLDER"], f"{rank}-0").exists() for rank in range(2))
            return are_there and super().is_lost

    outcome, _, _ = train("time.sleep(1000)", connection=Silent())
    assert outcome.is_cut_off
    assert not outcome.is_finished


def test_a_connection_that_answers_is_not_lost():
    store = open_store("127.0.0.1", 0, is_server=True)
    connection = Connection(("127.0.0.1", store.port), silence=60.0)
    before = connection._answered
    end = time.monotonic() + 60
    while connection._answered == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not connection.is_lost
