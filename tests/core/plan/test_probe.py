"""A device is measured once for its versions; its free memory every time."""

import json
from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.attention import AttentionShape
from wan_train.core.memory.deterministic import same_bits
from wan_train.core.plan import probe as module
from wan_train.core.plan.card import RATES
from wan_train.core.plan.probe import choose_kind, keep_overhead, probe

CPU = torch.device("cpu")
SHAPE = AttentionShape(3600, 40, 128, torch.float32, CPU)


@pytest.fixture
def measured(monkeypatch):
    """One entry for each measurement, which costs a second."""
    found = []
    rates = dict.fromkeys(RATES, 2.0)
    monkeypatch.setattr(module, "measure_rates", lambda _: found.append("rates") or rates)
    monkeypatch.setattr(module, "attention_rate", lambda *_: found.append("attention") or 3.0)
    return found


def test_the_second_start_measures_nothing_but_what_is_free(tmp_path, measured, monkeypatch):
    first = probe(CPU, "", tmp_path)
    assert measured == ["rates", "attention"]
    assert (first.card.matmul, first.card.attention, first.is_known) == (2.0, 3.0, False)
    monkeypatch.setattr("wan_train.core.plan.card._free_memory", lambda _: (5, 6, 7, 8))
    second = probe(CPU, "", tmp_path)
    assert measured == ["rates", "attention"]
    assert second.is_known
    assert second.card == replace(first.card, free=5, total=6, free_ram=7, pinnable_ram=8)


def test_what_would_disturb_a_measurement_is_ended_before_it(tmp_path, measured):
    probe(CPU, "", tmp_path, first=lambda: measured.append("first"))
    assert measured == ["first", "rates", "attention"]
    probe(CPU, "", tmp_path, first=lambda: measured.append("first"))
    assert measured == ["first", "rates", "attention"]


def test_other_versions_are_measured_anew(tmp_path, measured, monkeypatch):
    probe(CPU, "", tmp_path)
    monkeypatch.setattr(module, "version_of", lambda _: "another driver")
    probe(CPU, "", tmp_path)
    assert measured == ["rates", "attention"] * 2


def test_damage_is_measured_anew(tmp_path, measured):
    probe(CPU, "", tmp_path)
    (path,) = tmp_path.glob("card-*.json")
    for content in ("", "{", "[]", json.dumps({**json.loads(path.read_text()), "rates": {"matmul": 1}})):
        path.write_text(content)
        assert probe(CPU, "", tmp_path).card.matmul == 2.0
    assert measured == ["rates", "attention"] * 5


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path, measured):
    (tmp_path / "file").write_text("")
    assert probe(CPU, "", tmp_path / "file").card.matmul == 2.0


def test_the_most_overhead_is_kept(tmp_path, measured):
    assert probe(CPU, "", tmp_path).card.overhead == 0
    for overhead in (500, 700, 600):
        keep_overhead(tmp_path, CPU, overhead)
    assert probe(CPU, "", tmp_path).card.overhead == 700
    assert measured == ["rates", "attention"]


def test_a_kind_of_attention_is_tried_once_for_its_class_of_shapes(tmp_path, measured, monkeypatch):
    tried, choose = [], module.choose_attention

    def watch(name, shape, *, compiled, same_bits):
        tried.append((shape.tokens, compiled))
        return choose(name, shape, compiled=compiled, same_bits=same_bits)

    monkeypatch.setattr(module, "choose_attention", watch)
    shape = replace(SHAPE, num_heads=2, head_dim=16)
    found = [choose_kind("sdpa", replace(shape, tokens=n), tmp_path) for n in (3600, 4096, 2100, 9000, 32000, 700)]
    assert found == [("sdpa", known) for known in (False, True, True, False, True, False)]
    assert choose_kind("sdpa", shape, tmp_path, compiled=True) == ("sdpa", False)  # a kind for the compiler is another
    assert tried == [(3600, False), (9000, False), (700, False), (3600, True)]
    probe(CPU, "sdpa", tmp_path)  # which keeps what is known of kinds, and is kept with it
    assert choose_kind("sdpa", shape, tmp_path) == ("sdpa", True)
    assert probe(CPU, "sdpa", tmp_path).is_known
    assert measured == ["rates", "attention"]


def test_nothing_is_tried_for_what_leaves_no_choice(tmp_path):
    assert choose_kind("default", SHAPE, tmp_path) == choose_kind("auto", SHAPE, None) == ("", True)
    assert list(tmp_path.iterdir()) == []


def test_a_kind_whose_package_has_gone_is_chosen_anew(tmp_path):
    shape = replace(SHAPE, num_heads=2, head_dim=16)
    assert choose_kind("sdpa", shape, tmp_path) == ("sdpa", False)
    (path,) = tmp_path.glob("card-*.json")
    path.write_text(path.read_text().replace('"name": "sdpa"', '"name": "flash_attn_9"'))
    assert choose_kind("sdpa", shape, tmp_path) == ("sdpa", False)
    with pytest.raises(ConfigError, match="There is no attention 'flash_attn_9' on the device cpu"):
        choose_kind("flash_attn_9", shape, tmp_path)


def test_what_is_chosen_and_measured_for_the_same_bits_is_kept_apart(tmp_path, measured):
    shape = AttentionShape(64, 2, 16, torch.float32, CPU)
    assert choose_kind("sdpa", shape, tmp_path) == ("sdpa", False)
    assert choose_kind("sdpa", shape, tmp_path, same_bits=True) == ("sdpa", False)  # by a process that tries no bits
    probe(CPU, "sdpa", tmp_path)
    with same_bits(True):
        assert choose_kind("sdpa", shape, tmp_path, same_bits=True) == ("sdpa", False)
        assert choose_kind("sdpa", shape, tmp_path, same_bits=True) == ("sdpa", True)
        assert not probe(CPU, "sdpa", tmp_path).is_known
        assert probe(CPU, "sdpa", tmp_path).is_known
    assert probe(CPU, "sdpa", tmp_path).is_known
    assert choose_kind("sdpa", shape, tmp_path) == ("sdpa", True)
