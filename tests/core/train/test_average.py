"""The moving average of the weights (EMA): the formula, what is shown, saved and resumed with it, and bad updates."""

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from wan_train.core.adapters.setup import adapter_state
from wan_train.core.errors import RunError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.option import without_effect
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train import average
from wan_train.core.train.average import Ema, averages_of, decay_at, start_left
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.preview_sampling import preview_latents
from wan_train.core.train.resume import resume
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.state import EMA, stateful_parts
from wan_train.core.train.validation import validation_loss
from wan_train.tests.core.optimizers.helpers import need
from wan_train.tests.core.train.helpers import make_trainer

GOOD, BAD = torch.tensor(True), torch.tensor(False)
CPU = torch.device("cpu")


def weights_at(step):
    """Two parameters as they are after an update."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,))]


def follow(options, steps, was_made=GOOD):
    parameters = [torch.nn.Parameter(weight) for weight in weights_at(0)]
    ema = Ema(torch.nn.Module(), parameters, options)
    for step in range(1, steps + 1):
        for parameter, weight in zip(parameters, weights_at(step), strict=True):
            parameter.data.copy_(weight)
        ema(was_made)
    with ema.shown():
        shown = [parameter.detach().clone() for parameter in parameters]
    return shown, parameters


@pytest.mark.parametrize("decay", [0.995, 0.5])
def test_it_is_that_of_diffusers(decay):
    training_utils = pytest.importorskip("diffusers.training_utils")
    theirs = training_utils.EMAModel([torch.nn.Parameter(weight) for weight in weights_at(0)], decay=decay)
    for step in range(1, 41):
        theirs.step([torch.nn.Parameter(weight) for weight in weights_at(step)])
        assert theirs.cur_decay_value == pytest.approx(decay_at(step, EmaOptions(use=True, decay=decay)))
    ours, _ = follow(EmaOptions(use=True, decay=decay), 40)
    for a, b in zip(ours, theirs.shadow_params, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_with_an_interval_the_decay_is_that_of_the_step(every):
    """As SimpleTuner has it: at every so many steps, min(decay, (1 + n) / (10 + n)) with n the step less one, 0 at first."""
    expected = [weight.double() for weight in weights_at(0)]
    for step in range(1, 31):
        if step % every == 0:
            n = step - 1
            decay = min(0.7, (1 + n) / (10 + n)) if n else 0.0
            expected = [decay * a + (1 - decay) * w.double() for a, w in zip(expected, weights_at(step), strict=True)]
    ours, _ = follow(EmaOptions(use=True, decay=0.7, every=every), 30)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_without_a_warm_up_the_decay_is_the_same_from_the_start():
    """As AI-Toolkit has it."""
    expected = [weight.double() for weight in weights_at(0)]
    for step in range(1, 11):
        expected = [a - (1 - 0.9) * (a - w.double()) for a, w in zip(expected, weights_at(step), strict=True)]
    ours, _ = follow(EmaOptions(use=True, decay=0.9, warm_up=False), 10)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_an_update_that_was_not_made_changes_nothing():
    shown, _ = follow(EmaOptions(use=True), 5, was_made=BAD)
    assert all(map(torch.equal, shown, weights_at(0)))


@pytest.mark.parametrize("at_once", [1, 16, 2**22])
def test_in_pieces_it_is_the_same_and_the_weights_come_back_to_the_bit(at_once, monkeypatch):
    whole, _ = follow(EmaOptions(use=True), 7)
    monkeypatch.setattr(average, "AVERAGED_AT_ONCE", at_once)
    pieces, parameters = follow(EmaOptions(use=True), 7)
    assert all(map(torch.equal, whole, pieces))
    assert all(map(torch.equal, parameters, weights_at(7)))
    assert not any(map(torch.equal, pieces, weights_at(7)))


def with_ema(job, **options):
    """A run of which everything is asked: samples held out, previews."""
    samples = (replace(job.data.samples[0], held_out=True), *job.data.samples[1:])
    return replace(
        job, ema=EmaOptions(use=True, every=2, **options), data=replace(job.data, samples=samples),
        previews=PreviewOptions(every=3, steps=2, shift=5.0), loop=replace(job.loop, validate_every=3),
    )  # fmt: skip


def run(folder, job, stop_at=None):
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(job)

    def should_stop():
        return stop_at is not None and max(read_history(folder.events_path).losses, default=0) >= stop_at

    return run_job(folder, EventWriter(folder.events_path), CPU, should_stop)


def values(folder, event):
    return [found["loss"] for found in EventReader(folder.events_path).read() if found["event"] == event]


def weights_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()["wantrain.weights"]


@pytest.mark.grid(2)
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_run_writes_both_and_goes_on_exactly(tmp_path, job, optimizer):
    job = with_ema(replace(job, optimizer=OptimizerOptions(name=optimizer, learning_rate=1e-2)))
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    lora = run(whole, job)
    with pytest.raises(RunStoppedError):
        run(parts, job, stop_at=3)
    again = run(parts, job)
    beside = lora.with_name("test_low_noise_trained.safetensors")
    for one, other in ((lora, again), (beside, again.with_name(beside.name))):
        a, b = load_file(one), load_file(other)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (weights_of(lora), weights_of(beside)) == ("ema", "trained")
    assert values(whole, "validation") == list(dict.fromkeys(values(parts, "validation")))
    checkpoint = whole.checkpoints()[-1][1]
    trained, averaged = (load_file(checkpoint / f"{name}.safetensors") for name in ("adapter", "average"))
    assert all(torch.equal(trained[key], value) for key, value in load_file(beside).items())
    assert all(torch.equal(averaged[key], value) for key, value in load_file(lora).items())
    assert not torch.equal(
        torch.cat([v.flatten() for v in trained.values()]), torch.cat([v.flatten() for v in averaged.values()])
    )


def test_it_changes_nothing_of_the_training(tmp_path, job):
    without, with_it = RunFolder(tmp_path / "without"), RunFolder(tmp_path / "with")
    plain = run(without, replace(with_ema(job), ema=EmaOptions()))
    run(with_it, with_ema(job))
    assert values(without, "step") == values(with_it, "step")
    assert values(without, "validation") != values(with_it, "validation")
    trained = load_file(with_it.path / "test_low_noise_trained.safetensors")
    assert all(torch.equal(trained[key], value) for key, value in load_file(plain).items())
    assert "wantrain.weights" not in safe_open(plain, "pt").metadata()
    assert not (without.checkpoints()[-1][1] / "average.safetensors").exists()


def test_the_file_may_hold_the_trained_ones_and_so_may_be_shown(tmp_path, job):
    plain, other = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "other")
    run(plain, replace(with_ema(job), ema=EmaOptions()))
    lora = run(other, with_ema(job, shown="none", lora="trained"))
    assert values(plain, "validation") == values(other, "validation")
    assert weights_of(lora) == "trained"
    assert weights_of(lora.with_name("test_low_noise_ema.safetensors")) == "ema"


def trainer_with_average(job, steps=3):
    trainer = make_trainer(job)
    averages = averages_of(job, trainer.model, trainer.parameters, trainer.optimizer)
    trainer.shown = averages.shown
    trainer.after_update.append(averages.ema)
    for _ in range(steps):
        trainer.train_step().read()
    return trainer, averages


def test_validation_and_previews_see_the_average(job):
    trainer, averages = trainer_with_average(with_ema(job))
    plain_loss, plain_preview = validation_loss(trainer)[0], preview_latents(trainer)
    with trainer.shown():
        loss, preview = validation_loss(trainer)[0], preview_latents(trainer)
    assert loss != plain_loss
    assert not torch.equal(preview, plain_preview)
    averages.ema.load_state_dict({"step": 3, "weights": adapter_state(trainer.model)})
    with trainer.shown():
        assert (validation_loss(trainer)[0], torch.equal(preview_latents(trainer), plain_preview)) == (plain_loss, True)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda state: state.pop("step"), "is no table of weights"),
        (lambda state: state.update(step=-1), "has made -1 updates"),
        (lambda state: state.update(step=1.5), "has made 1.5 updates"),
        (lambda state: state["weights"].pop(next(iter(state["weights"]))), "is not this run's"),
        (lambda state: next(iter(state["weights"].values())).view(-1)[:1].fill_(float("nan")), "is not this run's"),
    ],
)
def test_a_state_that_is_not_its_own_is_refused(job, spoil, sentence):
    _, averages = trainer_with_average(with_ema(job), steps=2)
    state = averages.ema.state_dict()
    averages.ema.check_state(state)
    spoil(state)
    with pytest.raises(ValueError, match=sentence):
        averages.ema.check_state(state)


def test_a_checkpoint_without_it_is_told(tmp_path, job):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunStoppedError):
        run(folder, job, stop_at=2)
    trainer, averages = trainer_with_average(with_ema(job), steps=0)
    parts = stateful_parts(trainer.model, trainer.optimizer, OPTIMIZERS.get("adamw"), **{EMA: averages.ema})
    with pytest.raises(RunError, match="it holds no state of the ema"):
        resume(folder, EventWriter(folder.events_path), parts, steps=6, training=job.key)


def test_options_without_it_are_told_and_it_makes_another_key(job):
    told = without_effect(EmaOptions(decay=0.9, every=2, shown="none", lora="trained", warm_up=False))
    assert told[0] == "ema_decay has no effect with ema off; it belongs to on."
    assert len(told) == 5
    used = replace(job, ema=EmaOptions(use=True))
    assert replace(job, ema=EmaOptions()).key == job.key != used.key
    assert replace(used, ema=EmaOptions(use=True, shown="none")).key == used.key
    keys = {replace(used, ema=EmaOptions(use=True, **one)).key
            for one in ({"decay": 0.9}, {"every": 2}, {"warm_up": False}, {"lora": "trained"})}  # fmt: skip
    assert len(keys - {used.key}) == 4


MIXES = [
    {"name": "schedulefree", "lora_plus": 4.0},
    {"name": "prodigy", "learning_rate": 1.0, "args": "d0=1e-3, d_coef=2", "clip_by": "value", "max_grad_norm": 0.01},
    {
        "name": "ademamix8bit",
        "lora_plus": 2.0,
        "clip_by": "value",
        "max_grad_norm": 0.5,
        "args": "t_alpha=4, t_beta3=4",
    },
    {"name": "adafactor", "max_grad_norm": 0.0, "lora_plus": 16.0},
    {"name": "custom", "path": "torch.optim.NAdam", "args": "decoupled_weight_decay=True", "lora_plus": 3.0},
    {"name": "muon", "beta1": 0.95, "lora_plus": 2.0},
    {"name": "paged_lion8bit", "beta2": 0.99},
]


@pytest.mark.grid(4)
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix["name"])
def test_a_mix_goes_on_exactly(tmp_path, job, mix):
    """Optimizer, LoRA+, clipping, schedule, dropout and, where it may be, the average."""
    method = OPTIMIZERS.get(mix["name"])
    need(*method.packages)
    if mix["name"] == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("PyTorch 2.9 or newer")
    job = replace(
        job,
        optimizer=OptimizerOptions(**{"learning_rate": 1e-2, "weight_decay": 0.1, **mix}),
        ema=EmaOptions(use=not method.averages, every=2),
        schedule=replace(job.schedule, kind="warmup_stable_decay", warmup_steps=2, decay_share=0.5),
        adapter=replace(job.adapter, dropout=0.1),
    )
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    lora = load_file(run(whole, job))
    with pytest.raises(RunStoppedError):
        run(parts, job, stop_at=3)
    again = load_file(run(parts, job))
    assert all(torch.equal(lora[key], again[key]) for key in lora)
    losses = {e["step"]: e["loss"] for e in EventReader(parts.events_path).read() if e["event"] == "step"}
    assert list(losses.values()) == values(whole, "step")


CHANGES = [
    {"optimizer": {"lora_plus": 4.0}},
    {"optimizer": {"clip_by": "value", "max_grad_norm": 1e-4}},
    {"optimizer": {"name": "muon", "args": "ns_steps=2"}},
    {"schedule": {"kind": "rex"}},
    {"schedule": {"kind": "cosine_restarts", "cycles": 2}},
    {"schedule": {"kind": "cosine_restarts", "cycles": 3}},
    {"schedule": {"kind": "warmup_stable_decay"}},
    {"schedule": {"kind": "warmup_stable_decay", "decay_share": 0.9}},
    {"ema": {"use": True}},
    {"ema": {"use": True, "every": 3}},
    {"ema": {"use": True, "decay": 0.1}},
    {"ema": {"use": True, "warm_up": False}},
]


def test_each_option_reaches_the_lora(tmp_path, job):
    """Each of these, and the run without any, gives a LoRA of its own."""
    digests = []
    for number, change in enumerate([{}, *CHANGES]):
        if change.get("optimizer", {}).get("name") == "muon" and not hasattr(torch.optim, "Muon"):
            continue
        changed = replace(job, **{group: replace(getattr(job, group), **values) for group, values in change.items()})
        lora = load_file(run(RunFolder(tmp_path / str(number)), changed))
        digests.append(hashlib.sha256(b"".join(lora[key].numpy().tobytes() for key in sorted(lora))).hexdigest())
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("options", [{"decay": 0.9, "warm_up": False}, {"decay": 0.9, "every": 3}, {"every": 9}, {}])
def test_what_is_left_of_the_start_is_what_the_average_has(options):
    options = EmaOptions(use=True, **options)
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = Ema(layer, [layer.weight], options)
    layer.weight.data.zero_()
    for _ in range(8):
        average(torch.ones(()))
    with average.shown():
        assert layer.weight.item() == pytest.approx(start_left(8, options), abs=1e-6)
