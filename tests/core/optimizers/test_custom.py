"""Any class by its import path: those of torch at once, those of other packages where the machine allows it."""

import sys
from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.start import check_optimizer
from wan_train.tests.core.optimizers.helpers import assert_close, expect, train

SGD = OptimizerOptions(name="custom", path="torch.optim.SGD", args="momentum=0.9", learning_rate=1e-2, weight_decay=0.1)
SOURCE = """
import pathlib, torch
pathlib.Path(__file__).with_name("was_run").touch()

class Half(torch.optim.Optimizer):
    def __init__(self, params, lr, factor=0.5):
        super().__init__(params, {"lr": lr, "factor": factor, "made": 0})

    def step(self, closure=None):
        for group in self.param_groups:
            group["made"] += 1
            for p in group["params"]:
                self.state[p]["kept"] = [p.detach().clone(), {"more": torch.zeros_like(p)}]
                p.data.add_(p.grad, alpha=-group["lr"] * group["factor"] * group["made"])

class Odd(Half):
    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["odd"] = pathlib.Path("x")

def no_class(params, lr):
    return Half(params, lr)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody else, which says when its code was run."""
    folder = tmp_path / "strange_optimizers"
    folder.mkdir()
    (folder / "__init__.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("strange_optimizers", None)


def half(**changes):
    return OptimizerOptions(name="custom", path="strange_optimizers.Half", learning_rate=1e-2, **changes)


def test_a_class_of_torch_is_what_it_is():
    def rule(weight, state, gradient, _step):
        gradient = gradient + 0.1 * weight
        state["mean"] = 0.9 * state["mean"] + gradient if "mean" in state else gradient
        return weight - 1e-2 * state["mean"]

    parameters, _ = train(SGD)
    assert_close(parameters, expect(rule))


def test_the_planner_counts_what_a_trial_measures():
    method = OPTIMIZERS.get("custom")
    assert method.bytes_of(SGD) == 4
    assert method.bytes_of(replace(SGD, args="")) == 0
    assert method.bytes_of(replace(SGD, path="torch.optim.Adam", args="amsgrad=True")) == 12


def test_another_package_is_not_imported_unless_the_machine_allows_it(package, monkeypatch):
    for allowed in ("", "strange, strange_optimizers.Half"):
        monkeypatch.setenv("WANTRAIN_OPTIMIZERS", allowed)
        with pytest.raises(ConfigError, match="set the environment variable WANTRAIN_OPTIMIZERS to strange_optimizers"):
            check_optimizer(half(), EmaOptions())
    assert not (package / "was_run").exists()
    monkeypatch.setenv("WANTRAIN_OPTIMIZERS", "another, strange_optimizers")
    check_optimizer(half(), EmaOptions())
    assert (package / "was_run").exists()
    assert OPTIMIZERS.get("custom").bytes_of(half()) == 8  # also of what lies in lists and tables


def test_what_it_counts_in_its_groups_and_its_arguments_reach_it(package, monkeypatch):
    monkeypatch.setenv("WANTRAIN_OPTIMIZERS", "strange_optimizers")
    parameters, optimizer = train(half(args="factor=2.0"), steps=3)
    assert optimizer.param_groups[0]["made"] == 3
    assert_close(parameters, expect(lambda weight, _s, gradient, step: weight - 1e-2 * 2 * step * gradient, steps=3))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "optimizer_class is empty"),
        ("SGD", "name a class as package.module.Class"),
        ("torch.optim.", "name a class as package.module.Class"),
        ("torch.optim.Sgd", "can't be imported"),
        ("torch.optim.nothing.Sgd", "can't be imported"),
        ("torch.optim.lr_scheduler.StepLR", "which is no class of optimizers"),
        ("torch.load", "the package torch is not among those"),
        ("subprocess.Popen", "the package subprocess is not among those"),
        ("torch.optim.LBFGS", "fails in a trial"),  # it wants to compute the loss again
        ("strange_optimizers.no_class", "which is no class of optimizers"),
        ("strange_optimizers.Odd", "whose state in a checkpoint, fails in a trial"),
    ],
)
def test_what_cannot_be_used_is_told_before_the_start(package, monkeypatch, path, sentence):
    monkeypatch.setenv("WANTRAIN_OPTIMIZERS", "strange_optimizers")
    with pytest.raises(ConfigError, match=sentence):
        check_optimizer(OptimizerOptions(name="custom", path=path), EmaOptions())


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("momentun=0.9", "has 'momentun', which torch.optim.SGD does not take: choose among dampening"),
        ("momentum=-1", r"can't be used with optimizer_args 'momentum=-1' \(Invalid momentum value: -1\)"),
        ("lr=3.0", "has 'lr', which torch.optim.SGD does not take"),
    ],
)
def test_arguments_that_it_refuses_are_told_before_the_start(args, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_optimizer(replace(SGD, args=args), EmaOptions())


def test_a_weight_decay_that_the_class_does_not_take_is_told(package, monkeypatch):
    advice = OPTIMIZERS.get("custom").advice
    assert advice(half()) == ""  # not allowed: that is told
    monkeypatch.setenv("WANTRAIN_OPTIMIZERS", "strange_optimizers")
    assert advice(half()) == "weight_decay has no effect: the class strange_optimizers.Half takes none."
    assert advice(half(weight_decay=0.0)) == advice(SGD) == ""


def test_one_that_averages_is_known():
    pytest.importorskip("schedulefree")
    method, path = OPTIMIZERS.get("custom"), "schedulefree.RAdamScheduleFree"
    assert not method.averages_with(SGD)
    with pytest.raises(ConfigError, match="WANTRAIN_OPTIMIZERS"):
        method.averages_with(replace(SGD, path=path, args=""))


def test_one_that_averages_trains_where_it_is_allowed(monkeypatch):
    pytest.importorskip("schedulefree")
    monkeypatch.setenv("WANTRAIN_OPTIMIZERS", "schedulefree")
    options = replace(SGD, path="schedulefree.RAdamScheduleFree", args="")
    assert OPTIMIZERS.get("custom").averages_with(options)
    parameters, optimizer = train(options, steps=3)
    assert optimizer.param_groups[0]["train_mode"]
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert isinstance(optimizer, torch.optim.Optimizer)
