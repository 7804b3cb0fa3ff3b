"""The text of `optimizer_args`: plain values by name, and nothing that is run."""

from pathlib import Path

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.optimizers._arguments import read_arguments
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.option import without_effect

PAGE = Path(__file__).resolve().parents[3] / "web" / "docs" / "TrainLoRAStage.md"
KNOWN = ("d_coef", "betas", "use", "decay")


@pytest.mark.parametrize(
    "text",
    [
        "d_coef=2.0, betas=(0.9, 0.99), use=True, decay=-0.8",
        "d_coef=2.0 betas=0.9,0.99 use=True decay=-0.8",  # as musubi-tuner's command line has them
        "\td_coef = 2.0,\n betas = (0.9, 0.99), use = True, decay = -8e-1,",
    ],
)
def test_values_are_read_with_commas_or_spaces_between(text):
    assert read_arguments(text, KNOWN, "it") == {"d_coef": 2.0, "betas": (0.9, 0.99), "use": True, "decay": -0.8}


def test_nothing_is_nothing():
    assert read_arguments(" ", KNOWN, "it") == {}


@pytest.mark.parametrize(
    "text",
    ["d_coef", "d_coef=", "=2", "2", "d_coef=open('x')", "d_coef=__import__('os')", "d_coef=2, d_coef=3", "**{}", "f)(d_coef=1",
     "d_coef=2) + f(", "d_coef=" + "(" * 1000, "d_coef='"],
)  # fmt: skip
def test_what_is_no_plain_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"optimizer_args is .* which can't be read: write name=value"):
        read_arguments(text, KNOWN, "it")


def test_names_that_an_optimizer_has_not_are_refused_with_those_that_it_has():
    with pytest.raises(
        ConfigError, match="has 'dcoef', which it does not take: choose among betas, d_coef, decay, use"
    ):
        read_arguments("dcoef=2", KNOWN, "it")


BAD = [
    ("prodigy", "d_coef=0", "d_coef=0: it must be a number above 0"),
    ("prodigy", "slice_p=1.5", "slice_p=1.5: it must be a whole number from 1 on"),
    ("prodigy", "safeguard_warmup=1", "safeguard_warmup=1: it must be True or False"),
    ("muon", "ns_steps=100", "ns_steps=100: it must be a whole number from 1 to 99"),
    ("adafactor", "decay_rate=0.8", "decay_rate=0.8: it must be a number of at least -1 and below 0"),
    ("ademamix", "beta3=1", "beta3=1: it must be a number of at least 0 and below 1"),
    ("ademamix8bit", "t_alpha=0", "t_alpha=0: it must be a whole number from 1 on"),
    ("schedulefree", "r=-1", "r=-1: it must be a number of at least 0"),
    ("schedulefree", "lr=1", "has 'lr', which the optimizer schedulefree does not take"),
]


@pytest.mark.parametrize(("name", "args", "sentence"), BAD)
def test_values_out_of_range_are_told_before_the_start(name, args, sentence):
    assert sentence in OPTIMIZERS.get(name).problem(OptimizerOptions(name=name, args=args))


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_arguments_are_for_those_that_take_some_and_the_page_lists_them(name):
    method = OPTIMIZERS.get(name)
    told = without_effect(OptimizerOptions(name=name, args="x=1"))
    assert bool(told) == ("args" not in method.uses)
    if name == "custom":
        return  # those of the class
    assert bool(method.arguments) == ("args" in method.uses)
    if not method.arguments:
        return
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and name in
              line.split("|")[1].replace(",", " ").split()]  # fmt: skip
    assert [part.strip() for part in row.split("|")[4].split(",")] == list(method.arguments)


def test_each_constant_without_effect_is_told():
    told = without_effect(OptimizerOptions(name="lion", eps=1e-6))
    assert told[0].startswith("optimizer_eps has no effect with optimizer lion; it belongs to adamw and adamw8bit")
    assert without_effect(OptimizerOptions(name="prodigy", eps=1e-6, beta1=0.8, beta2=0.9)) == []
    assert len(without_effect(OptimizerOptions(name="adafactor", eps=1e-6, beta1=0.8, beta2=0.9))) == 3
