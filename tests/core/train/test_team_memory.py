"""Memory that runs out on one of several ranks: all step down to one plan, at one step, and the run stays what it is."""

from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import torch
from wan_train.core.plan import learnt, recovery
from wan_train.core.plan.card import common_card
from wan_train.core.plan.probe import DeviceProbe
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train import previews, run_plan, validation
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run_plan import RunPlan
from wan_train.tests.core.conftest import job_in
from wan_train.tests.core.train.team_runs import folder_of, lora, losses, run, spread, told
from wan_train.tests.ranks import RankError

OUT = "CUDA out of memory. Tried to allocate 1.00 GiB."


def made_deep(job, deep_model):
    return spread(replace(job, model=deep_model, memory=MemoryOptions(budget_gb=3.0)), 2, steps=4)


@pytest.fixture
def deep(job, deep_model):
    """A job whose plan is chosen, and can be left for leaner ones."""
    return made_deep(job, deep_model)


@pytest.fixture(scope="module")
def plain(_rank_processes, tmp_path_factory, model_path, deep_model, card):
    """The run of `deep` that has memory enough, trained once for those that do not; nobody changes it."""
    place = tmp_path_factory.mktemp("plain")
    folder = folder_of(place, "plain", made_deep(job_in(place, model_path), deep_model))
    _rank_processes.of(2)(short, folder.path, card, "load", None)
    return folder


@contextmanager
def failing(where, number=0, times=1):
    """The call number `number` of `where` (owner, name), and those after it, run out of memory: so many times."""
    owner, name = where
    act, calls = getattr(owner, name), []

    def short(*args, **options):
        calls.append(1)
        if number < len(calls) <= number + times:
            raise torch.OutOfMemoryError(OUT)
        return act(*args, **options)

    setattr(owner, name, short)
    try:
        yield
    finally:
        setattr(owner, name, act)


PLACES = {
    "load": (run_plan, "prepare"),
    "forward": (Trainer, "add_noise"),
    "backward": (torch.Tensor, "backward"),
    "update": (torch.optim.AdamW, "step"),
    "validation": (validation, "_losses"),
    "preview": (previews, "sample_shots"),
}


def short(world, path, card, place, rank, number=0, times=1):
    """A run in which memory runs out on one rank; how it ended there, its weights, and its last plan."""
    probe = learnt.probe
    learnt.probe = lambda *_, **__: DeviceProbe(card=replace(card, free=card.free - world.rank * 2**20))
    plans, callbacks = [], RunPlan.callbacks

    def watched(self):
        plans.append(self)
        return callbacks(self)

    RunPlan.callbacks = watched
    try:
        if rank == world.rank:
            with failing(PLACES[place], number, times):
                ended = run(world, path)
        else:
            ended = run(world, path)
    finally:
        RunPlan.callbacks = callbacks
        learnt.probe = probe  # these processes are those of other tests, too
    return *ended, asdict(plans[-1]._descent.choice.plan)


def test_a_plan_is_that_of_all_ranks(ranks, deep, card, tmp_path):
    folder = folder_of(tmp_path, "run", deep)
    first, second = ranks(2)(short, folder.path, card, "load", None)
    assert first == second
    (event,) = told(folder, "plan")
    assert "step" not in event
    assert not list(folder.scratch_path.glob("planner-*.json")), "what one GPU takes was not measured"


@pytest.mark.grid(2)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("place", "number"), [("load", 0), ("forward", 2), ("backward", 2)])
def test_all_step_down_together_and_nothing_is_lost(ranks, deep, plain, card, tmp_path, place, number, rank):
    folder = folder_of(tmp_path, "short", deep)
    first, second = ranks(2)(short, folder.path, card, place, rank, number)
    assert first == second
    assert first[0] == "finished"
    _, lower = told(folder, "plan")
    assert lower["step"] == (0 if place == "load" else 2)
    assert f"memory ran out {'while the model was loaded' if place == 'load' else 'at step 3'}" in lower["message"]
    assert losses(folder) == losses(plain)
    ours, theirs = lora(folder, 4), lora(plain, 4)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_where_no_plan_takes_less_all_of_them_say_so(ranks, deep, card, tmp_path):
    folder = folder_of(tmp_path, "short", deep)
    with pytest.raises(RankError) as error:
        ranks(2)(short, folder.path, card, "backward", 1, 1, 9)
    assert str(error.value).count("RunError: The GPU ran out of memory, and there is no plan that takes less") == 2
    assert [event.get("step") for event in told(folder, "plan")] == [None, 1]  # one that takes less was tried
    assert sorted(losses(folder)) == [1]


@pytest.mark.grid(3)
@pytest.mark.parametrize(("place", "rank"), [("validation", 0), ("validation", 1), ("preview", 0)])
def test_what_is_beside_the_steps_may_run_short(ranks, deep, card, tmp_path, place, rank):
    samples = tuple(replace(sample, held_out=number < 2) for number, sample in enumerate(deep.data.samples))
    job = replace(deep, data=replace(deep.data, samples=samples), previews=PreviewOptions(every=2, steps=6))
    plain, folder = folder_of(tmp_path, "plain", job), folder_of(tmp_path, "short", job)
    ranks(2)(short, plain.path, card, "load", None)
    first, second = ranks(2)(short, folder.path, card, place, rank)
    assert first == second
    assert len(told(folder, "plan")) == 2
    assert losses(folder) == losses(plain)
    for kind in ("validation", "preview"):
        assert len(told(folder, kind)) == len(told(plain, kind)) > 0


def test_a_preview_larger_than_all_clips_is_made_by_the_first_rank_or_left_out(ranks, deep, card, tmp_path):
    """The others wait for it, and know nothing of its memory."""
    larger = PreviewOptions(every=2, steps=2, cfg=1.0, width=64, height=64, frames=5)
    timesteps = replace(deep.timesteps, sigma_min=0.0, sigma_max=1.0)
    job = replace(deep, stage="single", timesteps=timesteps, previews=larger)
    plain, folder = folder_of(tmp_path, "plain", job), folder_of(tmp_path, "short", job)
    assert {ended for ended, *_ in ranks(2)(short, plain.path, card, "load", None)} == {"finished"}
    first, second = ranks(2)(short, folder.path, card, "preview", 0)
    assert first == second
    assert first[0] == "finished"
    assert [event["step"] for event in told(plain, "preview")] == [2, 4]
    assert [event["step"] for event in told(folder, "preview")] == [4]
    assert any(
        "64x64 with 5 frames do not fit into memory, and are left out" in e["message"] for e in told(folder, "warning")
    )
    assert len(told(folder, "plan")) == 1  # of the steps, which had memory enough
    assert losses(folder) == losses(plain)


def test_an_update_of_some_ranks_alone_is_no_state_to_go_on_from(ranks, deep, card, tmp_path):
    """They start again from the checkpoint; the next start plans with less."""
    job = replace(deep, loop=replace(deep.loop, checkpoint_every=1))
    folder = folder_of(tmp_path, "short", job)
    with pytest.raises(RankError) as error:
        ranks(2)(short, folder.path, card, "update", 1, 2)
    assert str(error.value).count("StartAgainError: The GPU's memory ran out") == 2
    first, second = ranks(2)(short, folder.path, card, "load", None)
    assert first == second
    before, after = told(folder, "plan")
    assert after["vram"] < before["vram"]
    assert sorted(losses(folder)) == [1, 2, 3, 4]


def test_ranks_that_talk_within_a_forward_start_again(ranks, deep, card, tmp_path):
    """As with a base that lies spread over them."""
    job = replace(deep, parallel=ParallelOptions(base="sharded"), loop=replace(deep.loop, checkpoint_every=1))
    folder = folder_of(tmp_path, "short", job)
    with pytest.raises(RankError, match="StartAgainError: The GPU's memory ran out"):
        ranks(2)(short, folder.path, card, "forward", 1, 2)
    assert max(losses(folder)) == 2
    first, second = ranks(2)(short, folder.path, card, "load", None)
    assert first == second
    before, after = told(folder, "plan")
    assert after["vram"] < before["vram"]
    assert sorted(losses(folder)) == [1, 2, 3, 4]


def test_with_a_plan_by_hand_they_do_not_start_again_for_ever(ranks, deep, card, tmp_path):
    job = replace(deep, parallel=ParallelOptions(base="sharded"), memory=MemoryOptions(plan="manual"))
    folder = folder_of(tmp_path, "short", job)
    with pytest.raises(RankError, match="there is no plan that takes less"):
        ranks(2)(short, folder.path, card, "forward", 1, 2)


def low(world, path, card):
    """A run on whose second rank the main memory is short before the third step, until a plan takes less."""
    free, calls = recovery._free_ram, []

    def now():
        calls.append(1)
        return 2**20 if world.rank == 1 and len(calls) == 3 else 2**40

    recovery._free_ram = now
    try:
        return short(world, path, card, "load", None)
    finally:
        recovery._free_ram = free


def test_main_memory_that_is_low_for_one_rank_counts_for_all(ranks, deep, card, tmp_path):
    folder = folder_of(tmp_path, "low", replace(deep, memory=replace(deep.memory, streamed_blocks=4)))
    first, second = ranks(2)(low, folder.path, card)
    assert first == second
    events = told(folder, "plan")
    assert all("main memory ran out at step" in event["message"] for event in events[1:])
    assert sorted(losses(folder)) == [1, 2, 3, 4]


def test_what_all_cards_have_is_the_least(card):
    other = replace(card, name="other", free=7, free_ram=8, matmul=1.0, launch_s=1.0, overhead=card.overhead + 5)
    common = common_card([card, other], 4)
    assert (common.name, common.free, common.free_ram, common.matmul) == (card.name, 7, 2, 1.0)
    assert (common.launch_s, common.overhead, common.bandwidth) == (1.0, card.overhead + 5, card.bandwidth)
    assert common_card([card], 1) is card
