"""Which precision means what, and what is refused or warned of."""

import sys

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.precision import (
    AUTO,
    PRECISION_KINDS,
    FormatOptions,
    needed_by_precision,
    precision_kind,
    resolve,
)
from wan_train.core.memory.precisions.fp8_compute import find_kernel
from wan_train.core.plan.plan import Plan, Task, block_weights, compute_size
from wan_train.core.settings.precision import PRECISIONS
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.memory.precisions.helpers import CPU, FORMATS, factors, make_layer, random, resolve_format

MPS = torch.device("mps")


def test_every_precision_is_resolved():
    for precision in PRECISIONS:
        options = FormatOptions(adapter={"layer": factors(8, 64)}) if precision == "ara" else None
        resolved = resolve(precision, CPU, options=options)
        assert (resolved.linear is None) == (precision in ("auto", "fp32", "bf16", "fp16"))
        said = precision == "fp8_compute" and find_kernel(CPU) is None  # before torch 2.9
        assert len(resolved.warnings) == said
        assert resolved.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def test_what_is_offered_is_what_there_is():
    assert set(PRECISIONS) == {AUTO, *PRECISION_KINDS.names}
    assert all(precision_kind(name).help for name in PRECISION_KINDS.names)


@pytest.mark.parametrize("name", PRECISION_KINDS.names)
def test_planned_bytes_are_those_of_the_layer(name):
    """Whatever the form: the planner's bytes of a weight are the layer's, without its bias."""
    kind = precision_kind(name)
    options = FormatOptions(rank=4, adapter={"layer": factors(32, 64, 4)} if kind.needs_adapter else {})
    dtype = kind.dtype or torch.float32
    if kind.linears is None:
        tensors = [random(32, 64, dtype=dtype)]
    else:
        layer = kind.linears(options)("layer", random(32, 64), None, dtype=dtype, bias=None)
        tensors = list(layer.buffers())
    assert [tensor.nbytes for tensor in tensors] == kind.weight_bytes((32, 64), dtype.itemsize, 4)


def test_the_planner_refuses_what_it_does_not_know():
    task = Task(sizes=WanConfig())
    for name in ("fp6", AUTO):
        with pytest.raises(ConfigError, match=f"precision '{name}' is not known: choose one of ara, bf16"):
            block_weights(task, Plan(precision=name))
        with pytest.raises(ConfigError, match=f"precision '{name}' is not known"):
            compute_size(task, Plan(precision=name))


def test_packages_are_asked_for_by_the_precision_that_needs_them():
    assert needed_by_precision("nf4") == ("bitsandbytes",)
    assert needed_by_precision(AUTO) == needed_by_precision("fp8") == ()
    with pytest.raises(ConfigError, match="precision 'fp6' is not known"):
        needed_by_precision("fp6")


def test_auto_follows_the_device():
    assert resolve("auto", CPU).dtype == torch.float32
    assert resolve("auto", MPS).dtype == torch.bfloat16


def test_every_format_makes_its_own_layer():
    layers = {type(make_layer(name, random(32, 64))).__name__ for name in FORMATS}
    in_fp8 = {"Fp8ComputeLinear"} if find_kernel(CPU) else set()
    assert layers == {"Fp8Linear", "Int8Linear", "Nf4Linear", "NestedNf4Linear", "Int4Linear"} | in_fp8


def test_options_reach_the_layers():
    layer = resolve("int4_svd", CPU, options=FormatOptions(rank=3)).linear(
        "layer", random(32, 64), None, dtype=torch.float32, bias=None
    )
    assert layer.up.shape == (32, 3)


def test_what_cannot_be_is_refused_by_sentences(monkeypatch):
    with pytest.raises(ConfigError, match=r"precision 'fp6' is not known: choose one of auto, ara, bf16"):
        resolve("fp6", CPU)
    with pytest.raises(ConfigError, match=r"'ara' needs an accuracy recovery adapter: give its file"):
        resolve("ara", CPU)
    with pytest.raises(ConfigError, match=r"adapter is given, but the precision is 'fp8': choose 'ara'"):
        resolve("fp8", CPU, options=FormatOptions(adapter={"layer": factors(8, 64)}))
    with pytest.raises(ConfigError, match=r"rank .* must be at least 1, got 0"):
        FormatOptions(rank=0)
    with pytest.raises(ConfigError, match=r"'fp8' cannot be used on Apple's GPUs: choose 'int8' or 'int4_svd'"):
        resolve("fp8", MPS)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"package bitsandbytes .*-m pip install --upgrade bitsandbytes .*int4_svd"):
        resolve("nf4", CPU)


def test_a_gguf_file_is_left_as_it_is_and_that_is_said():
    (warning,) = resolve("int8", CPU, weights="q4_k").warnings
    assert warning.startswith(
        "The model file is a GGUF file (Q4_K), whose layers stay as they are: the precision 'int8'"
    )
    assert resolve("bf16", CPU, weights="q4_k").warnings == ()
    assert resolve("int8", CPU, weights="fp8_scaled").warnings == ()


def test_an_adapter_for_the_bf16_model_on_another_file_is_warned_of():
    options = FormatOptions(adapter={"layer": factors(8, 64)})
    (warning,) = resolve("ara", CPU, weights="fp8", options=options).warnings
    assert "made for the bf16 model, but the model file stores fp8: use the fp16 or bf16 file" in warning
    assert resolve("ara", CPU, weights="bf16", options=options).warnings == ()


def test_a_format_resolved_once_serves_many_layers():
    resolved = resolve_format("int4_svd")
    first, second = (
        resolved.linear(name, random(32, 64, seed=seed), None, dtype=torch.float32, bias=None)
        for seed, name in enumerate(("a", "b"))
    )
    assert not torch.equal(first.weight, second.weight)
