"""A device is measured once for its versions; its free memory every time."""

import json
from dataclasses import replace

import pytest
import torch
from wan_train.core.memory.attention import Decided, Shape
from wan_train.core.plan import probe as module
from wan_train.core.plan.card import RATES
from wan_train.core.plan.probe import Kept, keep_overhead, probe, read_kept, write_kept

CPU = torch.device("cpu")
SHAPE = Shape(3600, 40, 128, torch.float32, CPU)


@pytest.fixture
def measured(monkeypatch):
    """One entry for each measurement, which costs a second."""
    found = []
    rates = dict.fromkeys(RATES, 2.0)
    monkeypatch.setattr(module, "measure_rates", lambda _: found.append("rates") or rates)
    monkeypatch.setattr(module, "attention_rate", lambda *_: found.append("attention") or 3.0)
    return found


def test_the_second_start_measures_nothing_but_what_is_free(tmp_path, measured, monkeypatch):
    first = probe(CPU, "auto", SHAPE, tmp_path)
    assert measured == ["rates", "attention"]
    assert (first.card.matmul, first.card.attention, first.attention) == (2.0, 3.0, None)
    monkeypatch.setattr("wan_train.core.plan.card._free_memory", lambda _: (5, 6, 7, 8))
    second = probe(CPU, "auto", SHAPE, tmp_path)
    assert measured == ["rates", "attention"]
    assert second.card == replace(first.card, free=5, total=6, free_ram=7, pinnable_ram=8)


def test_what_would_disturb_a_measurement_is_ended_before_it(tmp_path, measured):
    probe(CPU, "auto", SHAPE, tmp_path, first=lambda: measured.append("first"))
    assert measured == ["first", "rates", "attention"]
    probe(CPU, "auto", SHAPE, tmp_path, first=lambda: measured.append("first"))
    assert measured == ["first", "rates", "attention"]


def test_other_versions_are_measured_anew(tmp_path, measured, monkeypatch):
    probe(CPU, "auto", SHAPE, tmp_path)
    monkeypatch.setattr(module, "version_of", lambda _: "another driver")
    probe(CPU, "auto", SHAPE, tmp_path)
    assert measured == ["rates", "attention"] * 2


def test_damage_is_measured_anew(tmp_path, measured):
    probe(CPU, "auto", SHAPE, tmp_path)
    (path,) = tmp_path.glob("card-*.json")
    for content in ("", "{", "[]", json.dumps({**json.loads(path.read_text()), "rates": {"matmul": 1}})):
        path.write_text(content)
        assert probe(CPU, "auto", SHAPE, tmp_path).card.matmul == 2.0
    assert measured == ["rates", "attention"] * 5


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path, measured):
    (tmp_path / "file").write_text("")
    assert probe(CPU, "auto", SHAPE, tmp_path / "file").card.matmul == 2.0


def test_the_most_overhead_is_kept(tmp_path, measured):
    assert probe(CPU, "auto", SHAPE, tmp_path).card.overhead == 0
    for overhead in (500, 700, 600):
        keep_overhead(tmp_path, CPU, overhead)
    assert probe(CPU, "auto", SHAPE, tmp_path).card.overhead == 700
    assert measured == ["rates", "attention"]


def test_a_decision_holds_for_its_class_of_shapes(tmp_path, monkeypatch):
    tried = []

    def choose(_, shape):
        tried.append(shape.tokens)
        return Decided("math")  # which is all that is asked of a choice

    monkeypatch.setattr(module, "choose_attention", choose)
    kept = Kept()
    for tokens in (3600, 4096, 2100, 9000, 32000, 700):
        on_gpu = replace(SHAPE, tokens=tokens, device=torch.device("cuda"), dtype=torch.bfloat16)
        decided, kept = module._decide("auto", on_gpu, kept)
        assert decided == Decided("math")
    assert tried == [3600, 9000, 700]
    write_kept(tmp_path / "card.json", "1", replace(kept, rates=dict.fromkeys(RATES, 1.0)))
    again = read_kept(tmp_path / "card.json", "1")
    assert module._decide("auto", replace(SHAPE, device=torch.device("cuda"), dtype=torch.bfloat16), again)[
        0
    ] == Decided("math")
    assert tried == [3600, 9000, 700]
    assert module._decide("default", on_gpu, kept) == (None, kept)
