"""A run that hands its device over on its way: its weights wait elsewhere, and all it learns is what it learns alone."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.memory import parking
from wan_train.core.plan.card import measure_card
from wan_train.core.plan.decision import decide
from wan_train.core.plan.planner import MARGIN, MARGIN_BYTES
from wan_train.core.plan.planning import make_planner
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.alternate import AWAY, RunStoppedError
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.loop import Trainer
from wan_train.core.train.requests import SAVE_FILE
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.model import WanTransformer

CPU = torch.device("cpu")


class Turns:
    """Another run that always waits; `while_away`: what happens in its turns."""

    has_waited = True

    def __init__(self, while_away=lambda: True):
        self.count, self.while_away = 0, while_away

    def is_wanted(self):
        return True

    def hand_over(self, ask):
        self.count += 1
        return self.while_away() and not ask()


def begin(tmp_path, job, name):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(job)
    return folder


def train(folder, turns=None, stop=lambda: False):
    """Losses by step, the LoRA, and the events."""
    lora = run_job(folder, EventWriter(folder.events_path), CPU, stop, turns=turns)
    return dict(read_history(folder.events_path).losses), load_file(lora), EventReader(folder.events_path).read()


def same(lora, other):
    return lora.keys() == other.keys() and all(torch.equal(lora[name], other[name]) for name in lora)


def warnings(events):
    return [event["message"] for event in events if event["event"] == "warning"]


@pytest.fixture
def alone(tmp_path, job: Job):
    losses, lora, _ = train(begin(tmp_path, job, "alone"))
    return losses, lora


@pytest.fixture
def models(monkeypatch):
    """The models that were made, to look at their weights."""
    found = []
    init = WanTransformer.__init__

    def made(self, *args, **options):
        init(self, *args, **options)
        found.append(self)

    monkeypatch.setattr(WanTransformer, "__init__", made)
    return found


def tight(job, *, blocks=None):
    """Memory options whose budget has room for one such run, but not for two."""
    planner = make_planner(job, decide(job, inspect(job.model.path), CPU), measure_card(CPU))
    least = planner.leanest().vram
    pins = {} if blocks is None else {"streamed_blocks": blocks, "stream_from": "pageable"}
    return MemoryOptions(budget_gb=(1.3 * least + MARGIN_BYTES) / (1 - MARGIN) / 2**30, **pins)


@pytest.mark.grid(3)
@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_weights_that_wait_elsewhere_come_back_to_the_bit(tmp_path, job: Job, alone, models, blocks):
    """Plain, with a block swapped, and with all of them; what is trained stays where it is."""
    job = replace(job, alternate_every=2, memory=tight(job, blocks=blocks))
    places = {"away": [], "here": []}

    def look(where):
        def address(tensors):
            return [tensor.data_ptr() for tensor in tensors]

        weights = list(models[-1].parameters())
        frozen = address(p for p in weights if not p.requires_grad)
        places[where].append((frozen, address(p for p in weights if p.requires_grad)))
        return True

    turns = Turns(lambda: look("away"))
    step = Trainer.train_step

    def watched(self):
        look("here")
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        losses, lora, events = train(begin(tmp_path, job, "turns"), turns)
    assert (losses, same(lora, alone[1])) == (alone[0], True)
    assert warnings(events) == []
    assert turns.count == 2  # after steps 2 and 4; after the sixth the run is over
    (first, trained), (second, also_trained) = places["away"]
    here, trained_here = places["here"][0]
    assert first == second, "the copy in main memory is made once"
    assert not set(first[:4]) & set(here[:4])  # of what is outside of the blocks
    assert trained == also_trained == trained_here
    (plan,) = [event for event in events if event["event"] == "plan"]
    assert "switching every 2 steps, " in plan["message"]
    assert "weights on the GPU" not in plan["message"]
    told = [(event["step"], event["message"], "away_s" in event) for event in events if event["event"] == "turn"]
    assert told == [(2, AWAY, False), (2, "", True), (4, AWAY, False), (4, "", True)]


def test_weights_stay_where_both_fit(tmp_path, job: Job, alone, monkeypatch):
    monkeypatch.setattr(parking, "BlockMaster", lambda *_, **__: pytest.fail("weights are moved"))
    job = replace(job, alternate_every=1, memory=MemoryOptions(budget_gb=8.0))
    turns = Turns()
    losses, lora, events = train(begin(tmp_path, job, "both"), turns)
    assert (losses, same(lora, alone[1]), turns.count) == (alone[0], True, 5)
    (plan,) = [event for event in events if event["event"] == "plan"]
    assert "switching every step, with both experts' weights on the GPU, 0 s each and 0% of the time" in plan["message"]


def test_stopped_in_the_others_turn_it_keeps_a_checkpoint_and_goes_on_alone(tmp_path, job: Job, alone):
    job = replace(job, alternate_every=3, loop=replace(job.loop, checkpoint_every=100))
    folder = begin(tmp_path, job, "stopped")
    turns = Turns()
    with pytest.raises(RunStoppedError):
        train(folder, turns, stop=lambda: turns.count > 0)
    assert [step for step, _ in folder.checkpoints()] == [3]
    folder.write_job(replace(job, alternate_every=0))
    losses, lora, _ = train(folder)
    assert (losses, same(lora, alone[1])) == (alone[0], True)


def test_a_checkpoint_asked_for_in_the_others_turn_is_written_then(tmp_path, job: Job):
    job = replace(job, alternate_every=3, loop=replace(job.loop, checkpoint_every=100))
    folder = begin(tmp_path, job, "asked")
    saved = []

    class Asked(Turns):
        def hand_over(self, ask):
            (folder.path / SAVE_FILE).touch()
            assert ask() is False
            saved.extend(folder.checkpoints())
            return True

    train(folder, Asked())
    assert [step for step, _ in saved] == [3]
    assert not (folder.path / SAVE_FILE).exists()


def test_memory_that_is_short_when_it_comes_back_is_met_by_a_leaner_plan(tmp_path, job: Job, alone, monkeypatch):
    job = replace(job, alternate_every=2, memory=tight(job))
    wake, failing = parking.Parking.wake, [1]

    def short(self):
        if failing:
            failing.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        wake(self)

    monkeypatch.setattr(parking.Parking, "wake", short)
    losses, lora, events = train(begin(tmp_path, job, "short"), Turns())
    assert (losses, same(lora, alone[1])) == (alone[0], True)
    plans = [event for event in events if event["event"] == "plan"]
    assert len(plans) == 2
    assert plans[1]["message"].startswith("The GPU's memory ran out at step 3: the run goes on with")
    assert plans[1]["vram"] < plans[0]["vram"]


def test_weights_that_cannot_wait_elsewhere_are_told_and_stay(tmp_path, job: Job, alone, monkeypatch):
    """Main memory and disk refuse."""
    job = replace(job, alternate_every=2, memory=tight(job))

    def refuse(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(parking, "BlockMaster", refuse)
    turns = Turns()
    losses, lora, events = train(begin(tmp_path, job, "stays"), turns)
    assert (losses, same(lora, alone[1]), turns.count) == (alone[0], True, 0)
    (sentence,) = warnings(events)
    assert sentence.startswith("The device is not handed over, since the weights can't wait elsewhere: No space")


def test_over_several_gpus_it_is_told_that_nothing_is_handed_over(tmp_path, job: Job):
    _, _, events = train(begin(tmp_path, replace(job, alternate_every=2), "ranks"))
    (sentence,) = warnings(events)
    assert sentence.startswith("alternate_every has no effect on a run over several GPUs")


def test_how_it_takes_turns_makes_no_other_run(job: Job):
    assert replace(job, alternate_every=10).key == job.key
