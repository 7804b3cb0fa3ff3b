"""Every method alone and in mixes: it trains where it is not refused, goes on exactly, and does so however the base is held."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.setup import adapter_state, up_parameters
from wan_train.core.memory.precision import known_precision
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.parallel.world import ALONE
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.average import averages_of
from wan_train.core.train.crepa import feature_path, make_features
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import hold_bases, prepare
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.together import schedule_of
from wan_train.tests.core.optimizers.helpers import need
from wan_train.tests.core.train.every_method import adapters, assert_same_losses, beside, laws, mix, optimizers, refusal
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_crepa import encoder, vae  # noqa: F401
from wan_train.tools.miniature import dit_metadata, wan_dit

CPU = torch.device("cpu")
BESIDE = (
    "output preservation", "blank preservation", "adaptive preservation", "single pass", "prior preservation",
    "weight norms", "crepa",
    "tread", "rollout", "direction", "contrastive",
    "differential", "ema", "dropout", "lora plus", "clip by value", "accumulation", "strata", "shared lora",
)  # fmt: skip
SEEDS = (11, 23, 37)  # of the mixes
STEPS, STOP = 4, 2


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    path = tmp_path_factory.mktemp("low") / "mini_low.safetensors"
    save_file(wan_dit(SIZE, seed=1), path, metadata=dit_metadata(SIZE))
    return path


@pytest.fixture
def others(tmp_path, encoder, vae, low):  # noqa: F811
    found = beside(tmp_path, encoder, vae, low)
    assert tuple(found) == BESIDE
    return found


@pytest.fixture
def job(job):
    return replace(job, loop=LoopOptions(steps=STEPS, checkpoint_every=100, caption_dropout=0.2))


class Batches:
    """Those of a run, without a thread."""

    def __init__(self, job):
        self._schedule = schedule_of(job)

    def get(self, index):
        return self._schedule.load(index)


def begin(job, folder):
    """A trainer with all that a run gives one, and the parameters."""
    if feature_path(job) is not None:
        make_features(job, CPU, EventWriter(folder / "events.jsonl"), lambda: False, ALONE)
    prepared = prepare(job, CPU, scratch=folder)
    optimizer = build_optimizer(prepared.parameters, job.optimizer, ups=up_parameters(prepared.model))
    averages = averages_of(job, prepared.model, prepared.of_adapter, optimizer)
    trainer = Trainer(
        job, model=prepared.model, parameters=prepared.parameters, optimizer=optimizer, batches=Batches(job)
    )
    trainer.forwards.alignment = prepared.crepa
    trainer.after_update += [] if averages.ema is None else [averages.ema]
    if prepared.bases is not None:
        bases, streamer = prepared.bases, prepared.features.streamer
        hold_bases(bases, prepared.features, CPU, keeps_weights=False, scratch=folder)
        trainer.use_expert = lambda expert: bases.use(("high", "low").index(expert), streamer)
    prepared.model.train()
    return trainer


def steps(job, folder, count=2):
    """Losses, and the adapter after them."""
    trainer, losses = begin(job, folder), []
    for _ in range(count):
        trainer.use_expert(job.expert_at(trainer.step))
        losses.append(trainer.train_step().read().loss)
    return losses, adapter_state(trainer.model)


def assert_accepted_ones_train(name, job, pairs, tmp_path):
    """What `check_start` accepts of these makes a step."""
    tried = 0
    for which, change in pairs.items():
        made = change(job)
        if refusal(made):
            continue
        try:
            losses, _ = steps(made, tmp_path, count=1)
        except Exception as error:
            raise AssertionError(f"{name} with {which} is accepted, and fails: {error}") from error
        assert 0 < losses[0] < 1e4, which
        tried += 1
    assert tried >= len(pairs) - 4, "hardly anything was accepted"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (2.462e-5, 2.565e-5, True), (0.0, 1e-7, True),  # of a LoRA near its base: rounding
        (2.462e-5, 0.0, False), (2.462e-5, 3.2e-5, False), (0.0, 1e-6, False),  # and more than that
        (1.0, 1.015, True), (1.0, 1.03, False), (1.0, -1.0, False),
    ],
)  # fmt: skip
def test_losses_that_begin_at_nothing_are_compared_as_closely_as_rounding_is(one, other, is_same):
    """What the tests on a GPU take for the same."""
    if is_same:
        assert_same_losses([one], [other], rel=2e-2)
    else:
        with pytest.raises(AssertionError):
            assert_same_losses([one], [other], rel=2e-2)


@pytest.mark.grid(16)
@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_an_optimizer_trains_with_whatever_it_is_not_refused_with(tmp_path, job, others, name):
    need(*OPTIMIZERS.get(name).packages)
    pairs = {**{f"adapter {kind}": change for kind, change in adapters().items()}, **others}
    assert_accepted_ones_train(name, optimizers()[name](job), pairs, tmp_path)


@pytest.mark.grid(8)
@pytest.mark.parametrize("kind", list(adapters()))
def test_an_adapter_trains_with_whatever_it_is_not_refused_with(tmp_path, job, others, kind):
    assert_accepted_ones_train(kind, adapters()[kind](job), others, tmp_path)


@pytest.mark.parametrize(
    ("optimizer", "adapter", "other", "sentence"),
    [
        ("muon", "lora", "crepa", "muon trains matrices alone, but CREPA"),
        ("schedulefree", "lora", "ema", "averages the weights by itself"),
        ("prodigy", "lora", "lora plus", "has one learning rate for all"),
        ("adamw", "loha", "lora plus", "no second matrix"),
        ("adamw", "dora", "weight norms", "max_weight_norm is for plain LoRAs"),
        ("adamw", "dora", "shared lora", "shared_lora does not go with the adapter dora"),
    ],
)
def test_what_cant_be_is_refused_before_any_model_loads(job, others, optimizer, adapter, other, sentence):
    need(*OPTIMIZERS.get(optimizer).packages)
    made = others[other](adapters()[adapter](optimizers()[optimizer](job)))
    assert sentence in refusal(made)


def test_a_class_that_takes_matrices_alone_is_refused_with_crepa(job, others):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("PyTorch 2.9 or newer")
    made = replace(job, optimizer=OptimizerOptions(name="custom", path="torch.optim.Muon", learning_rate=1e-3))
    assert refusal(made) == ""
    assert "torch.optim.Muon trains matrices alone" in refusal(others["crepa"](made))


def train(folder, job, stop_at=None):
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(job)

    def should_stop():
        seen = [event for event in EventReader(folder.events_path).read() if event["event"] == "step"]
        return stop_at is not None and len(seen) >= stop_at

    lora = load_file(run_job(folder, EventWriter(folder.events_path), CPU, should_stop))
    events = EventReader(folder.events_path).read()
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}, lora


def goes_on_exactly(tmp_path, job):
    losses, lora = train(RunFolder(tmp_path / "runs" / "whole"), job)
    folder = RunFolder(tmp_path / "runs" / "stopped")
    with pytest.raises(RunStoppedError):
        train(folder, job, STOP)
    assert [step for step, _ in folder.checkpoints()] == [STOP]
    again, other = train(folder, job)
    assert again == losses
    assert lora.keys() == other.keys()
    assert all(torch.equal(lora[name], other[name]) for name in lora)


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_each_optimizer_goes_on_exactly(tmp_path, job, name):
    need(*OPTIMIZERS.get(name).packages)
    goes_on_exactly(tmp_path, optimizers()[name](job))


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", [*adapters(), *laws()])
def test_each_adapter_loss_weighting_law_and_schedule_goes_on_exactly(tmp_path, job, name):
    goes_on_exactly(tmp_path, {**adapters(), **laws()}[name](job))


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", BESIDE)
def test_each_other_method_goes_on_exactly(tmp_path, job, others, name):
    goes_on_exactly(tmp_path, others[name](job))


@pytest.mark.grid(4)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mix_goes_on_exactly(tmp_path, job, others, seed):
    names, made = mix(seed, job, others)
    assert len(names) >= 9, names
    goes_on_exactly(tmp_path, made)


def held(job, precision="auto", **memory):
    options = MemoryOptions(plan="manual", **memory)
    other = None if job.other_expert is None else replace(job.other_expert, precision=precision)
    return replace(job, memory=options, model=replace(job.model, precision=precision), other_expert=other)


def same_however_held(tmp_path, job, name):
    """Blocks that are swapped, and a base that is quantized; losses and weights of two steps."""
    for precision in ("auto", "int8"):
        losses, weights = steps(held(job, precision), tmp_path)
        swapped_losses, swapped = steps(held(job, precision, streamed_blocks=1, stream_from="pageable"), tmp_path)
        assert swapped_losses == losses, (name, precision)
        assert all(torch.equal(weights[key], swapped[key]) for key in weights), (name, precision)
    assert known_precision("int8") is not None


def is_the_plans(tmp_path, job):
    """With a planner that has a small GPU to fill, against no plan at all: to rounding, as blocks may be cut in pieces."""
    losses, lora = train(RunFolder(tmp_path / "runs" / "manual"), held(job))
    planned, other = train(RunFolder(tmp_path / "runs" / "planned"), replace(job, memory=MemoryOptions(budget_gb=2.0)))
    assert list(planned.values()) == pytest.approx(list(losses.values()), rel=1e-4)
    assert lora.keys() == other.keys()


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", [*adapters(), *(name for name in laws() if name.startswith(("loss", "weighting")))])
def test_each_adapter_and_loss_is_the_same_however_the_base_is_held(tmp_path, job, name):
    same_however_held(tmp_path, {**adapters(), **laws()}[name](job), name)


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", BESIDE)
def test_each_other_method_is_the_same_however_the_base_is_held(tmp_path, job, others, name):
    same_however_held(tmp_path, others[name](job), name)


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", [*BESIDE, *adapters()])
def test_each_is_what_it_is_without_a_planner(tmp_path, job, others, name):
    is_the_plans(tmp_path, {**others, **adapters()}[name](job))


@pytest.mark.grid(4)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mix_is_the_same_however_the_base_is_held(tmp_path, job, others, seed):
    names, made = mix(seed, job, others)
    same_however_held(tmp_path, made, names)
    is_the_plans(tmp_path, made)
