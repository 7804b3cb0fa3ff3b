"""A run that shall give the same bits each time goes on with the plan that it was begun with."""

import json
import re
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.memory.deterministic import is_deterministic
from wan_train.core.plan import learnt
from wan_train.core.plan.choice import Choice
from wan_train.core.plan.decision import decide
from wan_train.core.plan.planner import MARGIN, MARGIN_BYTES
from wan_train.core.plan.planning import make_planner, plan_of
from wan_train.core.plan.probe import DeviceProbe
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.train import kept_plan, run_plan
from wan_train.core.train.claim import claim_run
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.kept_plan import FILE, PlanOfBefore, read_kept_plan
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect

CPU = torch.device("cpu")
UNKNOWN = re.compile(
    r"deterministic: it has steps without the option, or its plan\.json is missing or damaged\. The run goes on"
)
ON = MemoryOptions(budget_gb=3.0, deterministic=True)  # a budget: else nothing is planned on a CPU


@pytest.fixture
def free(monkeypatch, card):
    """Sets how much memory is free at the next start."""

    def set_free(num_bytes):
        found = card if num_bytes is None else replace(card, free=num_bytes)
        monkeypatch.setattr(learnt, "probe", lambda *_, **__: DeviceProbe(card=found))

    set_free(None)
    return set_free


@pytest.fixture
def deep(job, deep_model, free):
    return replace(job, model=deep_model, loop=replace(job.loop, steps=4), memory=ON)


@pytest.fixture
def little(deep, card):
    """Bytes with which every block is swapped."""
    planner = make_planner(deep, decide(deep, inspect(deep.model.path), CPU), card)
    return int((planner.leanest().vram + 100 + MARGIN_BYTES) / (1 - MARGIN))


def folder_of(tmp_path, job, name):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    return folder


def go_on(folder, stop_at=None):
    def should_stop():
        return stop_at is not None and max(read_history(folder.events_path).losses, default=0) >= stop_at

    return run_job(folder, EventWriter(folder.events_path), CPU, should_stop)


def stop(folder, stop_at=2):
    with pytest.raises(RunStoppedError):
        go_on(folder, stop_at)


def of_kind(folder, kind):
    return [event for event in EventReader(folder.events_path).read() if event["event"] == kind]


def warnings(folder):
    return [event["message"] for event in of_kind(folder, "warning")]


def same(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_takes_the_plan_that_it_was_begun_with_and_ends_with_the_same_bits(tmp_path, deep, free, little):
    whole = go_on(folder_of(tmp_path, deep, "whole"))
    folder = folder_of(tmp_path, deep, "parts")
    stop(folder)
    free(little)
    assert same(go_on(folder), whole)
    first, second = of_kind(folder, "plan")
    for part in ("plan", "keep_attention", "keep_linears"):
        assert first[part] == second[part]
    assert second["plan"]["streamed_blocks"] == 0
    assert ", deterministic, " in second["message"]
    assert warnings(folder) == []


def test_without_the_option_another_plan_is_chosen_and_nothing_is_kept(tmp_path, deep, free, little):
    folder = folder_of(tmp_path, replace(deep, memory=replace(ON, deterministic=False)), "run")
    stop(folder)
    free(little)
    go_on(folder)
    first, second = of_kind(folder, "plan")
    assert first["plan"]["streamed_blocks"] == 0 < second["plan"]["streamed_blocks"]
    assert "deterministic" not in first["message"]
    assert not (folder.path / FILE).exists()


def test_the_key_stays_and_the_whole_run_computes_so(tmp_path, deep):
    assert deep.key == replace(deep, memory=MemoryOptions()).key
    seen, folder = [], folder_of(tmp_path, deep, "run")
    run_job(folder, EventWriter(folder.events_path), CPU, lambda: bool(seen.append(is_deterministic())))
    assert len(seen) >= 4
    assert set(seen) == {True}
    assert not is_deterministic()


def test_what_was_found_out_at_the_start_is_in_it_too(tmp_path, deep, monkeypatch):
    """The kind of attention, and whether graphs are worth their memory: as they were, whatever would be found now."""
    asked, used = [], []
    decide_now, load = run_plan.decide, run_plan.prepare

    def found(job, *others, **options):
        asked.append(job.memory.attention)
        return replace(decide_now(job, *others, **options), graphs=len(asked) > 1, joined=len(asked))

    def prepare(*others, decision, **options):
        used.append(decision)
        return load(*others, decision=decision, **options)

    monkeypatch.setattr(run_plan, "decide", found)
    monkeypatch.setattr(run_plan, "prepare", prepare)
    folder = folder_of(tmp_path, deep, "run")
    stop(folder)
    go_on(folder)
    assert asked == ["auto", "default"]  # what auto came to on a CPU
    assert [(one.joined, one.graphs, one.attention) for one in used] == [(1, False, "")] * 2


@pytest.mark.grid(2)
@pytest.mark.parametrize("change", ["options", "version", "plan"])
def test_what_makes_the_bits_others_is_told(tmp_path, deep, change, monkeypatch):
    folder = folder_of(tmp_path, deep, "run")
    stop(folder)
    if change == "options":
        folder.write_job(replace(deep, memory=replace(ON, checkpointing=True, keep_attention=1)))
        said = "other options were chosen since it was begun \\(checkpointing, keep_attention\\)"
    elif change == "version":
        monkeypatch.setattr(kept_plan, "version_of", lambda _: "another card")
        said = "it was begun on cpu, .*, and this is another card, version 2 of our kernels"
    else:
        monkeypatch.setattr(Trainer, "train_step", failing(Trainer.train_step))
        said = "its plan is another one than before"
    go_on(folder)
    (told,) = [sentence for sentence in warnings(folder) if sentence.startswith("deterministic")]
    assert re.match(rf"deterministic: {said}\. The run goes on, but from here on it differs by rounding", told)


def failing(train_step):
    """A step that is short of memory the first time."""
    failed = []

    def step(self):
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return train_step(self)

    return step


def test_a_plan_that_was_left_is_not_taken_again(tmp_path, deep, monkeypatch):
    folder = folder_of(tmp_path, deep, "run")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", failing(Trainer.train_step))
        stop(folder)
    go_on(folder)
    first, leaner, resumed = of_kind(folder, "plan")
    assert first["plan"] != leaner["plan"] == resumed["plan"]


def test_a_damaged_one_is_chosen_anew(tmp_path, deep):
    folder = folder_of(tmp_path, deep, "run")
    stop(folder)
    kept = folder.path / FILE
    plan = json.loads(kept.read_text())
    kept.write_text(json.dumps({**plan, "joined": 7}))
    assert read_kept_plan(folder.path) is None
    go_on(folder)
    assert read_kept_plan(folder.path).joined == plan["joined"]
    assert [UNKNOWN.match(told) is not None for told in warnings(folder)] == [True]


def test_steps_without_the_option_are_told(tmp_path, deep):
    without = replace(deep, memory=replace(ON, deterministic=False), loop=replace(deep.loop, steps=8))
    folder = folder_of(tmp_path, without, "run")
    stop(folder)
    folder.write_job(replace(without, memory=ON))
    stop(folder, 4)
    assert [UNKNOWN.match(told) is not None for told in warnings(folder)] == [True]
    stop(folder, 5)
    assert len(warnings(folder)) == 1  # from there on it is the plan of before
    folder.write_job(without)
    stop(folder, 6)
    assert read_kept_plan(folder.path) is None
    folder.write_job(replace(without, memory=ON))
    go_on(folder)
    assert [UNKNOWN.match(told) is not None for told in warnings(folder)] == [True, True]


def test_a_run_that_takes_turns_from_now_on_has_a_plan_of_its_own(tmp_path, deep):
    folder = folder_of(tmp_path, deep, "run")
    stop(folder)
    folder.write_job(replace(deep, alternate_every=1))
    go_on(folder)
    assert any("and this is cpu, " in told and "in turns with another run" in told for told in warnings(folder))


def taken(world, job, others, folder, cards):
    """On one rank: keeps a plan of `job`, then of each of `others`: whether it would be taken."""
    with patch.object(kept_plan, "version_of", lambda _: cards[world.rank]):
        before = PlanOfBefore(job, CPU, folder, world=world, warn=print)
        decision = decide(job, inspect(job.model.path), CPU)
        before.keep(decision, Choice(plan_of(job, decision, world), {}, 0, 0, 0.0))
        world.wait_for_all()
        return [PlanOfBefore(other, CPU, folder, world=world, warn=print).held is not None for other in others]


def test_ranks_take_it_together_and_not_where_they_are_spread_in_another_way(ranks, tmp_path, deep):
    sharded = replace(deep, parallel=ParallelOptions(base="sharded"))
    of_both = ranks(2)
    assert of_both(taken, deep, [deep, sharded], tmp_path, ["card", "card"]) == [[True, False]] * 2
    assert of_both(taken, sharded, [deep, sharded], tmp_path, ["card", "card"]) == [[False, True]] * 2
    assert of_both(taken, deep, [deep], tmp_path, ["card", "other card"]) == [[False]] * 2


def test_a_run_that_starts_from_anothers_checkpoint_takes_its_plan_along(tmp_path, deep):
    first = claim_run(tmp_path / "runs", deep)
    stop(first.folder)
    first.release()
    longer = claim_run(tmp_path / "runs", replace(deep, name="other", loop=replace(deep.loop, steps=6)))
    longer.release()
    assert longer.origin.step == 2
    assert (longer.folder.path / FILE).read_bytes() == (first.folder.path / FILE).read_bytes()
