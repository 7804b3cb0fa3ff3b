"""Rates of this machine, and what is learnt of a card."""

import pytest
import torch
from wan_train.core.plan import card as card_module
from wan_train.core.plan.card import (
    Correction,
    corrected,
    measure_card,
    measure_free,
    read_correction,
    write_correction,
)
from wan_train.tests.core.memory.helpers import CPU
from wan_train.tests.core.plan.test_estimate import CARD


def test_the_rates_of_this_machine_are_those_of_a_machine():
    card = measure_card(CPU)
    rates = (card.matmul, card.matmul_fp32, card.attention, card.bandwidth, card.to_device, card.staged)
    assert all(1e7 < rate < 1e15 for rate in rates)
    assert 0 < card.free <= card.free_ram
    assert 1e-8 < card.launch_s < 1e-2


def test_what_this_process_holds_counts_as_free(monkeypatch):
    """400 MB more of it change nothing. What others do meanwhile is left out: the machine has 8 GB less what is held."""
    num_bytes = 400 * 2**20
    monkeypatch.setattr(card_module, "available_ram", lambda: 8 * 2**30)
    before = measure_free(CARD, CPU)
    held = torch.ones(num_bytes // 4)
    monkeypatch.setattr(card_module, "available_ram", lambda: 8 * 2**30 - held.nbytes)
    after = measure_free(before, CPU)
    assert after.free_ram == pytest.approx(before.free_ram, abs=num_bytes // 2)
    assert (after.matmul, after.name) == (CARD.matmul, CARD.name)
    assert before.free_ram == before.free != CARD.free


def test_gradients_are_left_on_by_the_measurement():
    with torch.no_grad():
        measure_card(CPU)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_a_fit_is_kept_by_card_and_kind(tmp_path):
    correction = corrected(Correction(), memory=1.2, seconds=0.9)
    assert correction == Correction(1.2, 0.9)
    write_correction(tmp_path, CARD, "fp8 static", "1", correction)
    write_correction(tmp_path, CARD, "bf16 off", "1", Correction(1.1, 1.1))
    assert read_correction(tmp_path, CARD, "fp8 static", "1") == correction
    assert read_correction(tmp_path, CARD, "nf4 off", "1") == Correction()
    assert read_correction(tmp_path, CARD, "fp8 static", "2") == Correction()
    write_correction(tmp_path, CARD, "bf16 off", "2", Correction(1.3, 1.3))
    assert read_correction(tmp_path, CARD, "fp8 static", "1") == Correction()
    assert corrected(correction, memory=1.1).memory == pytest.approx(1.32)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": "1", "corrections": {"k": {"memory": "x", "time": 1}}}',
        '{"version": "1", "corrections": {"k": {"memory": 99, "time": 1}}}',
        '{"k": {"memory": 1.2, "time": 1.2}}',  # of before files had a version
    ],
)
def test_a_damaged_fit_is_no_fit(tmp_path, content):
    write_correction(tmp_path, CARD, "k", "1", Correction(1.5, 1.5))
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert read_correction(tmp_path, CARD, "k", "1") == Correction()
    write_correction(tmp_path, CARD, "k", "1", Correction(1.5, 1.5))
    assert read_correction(tmp_path, CARD, "k", "1") == Correction(1.5, 1.5)


def test_wild_measurements_are_limited():
    assert corrected(Correction(), memory=50.0, seconds=0.001) == Correction(3.0, 0.5)


def test_a_card_with_little_memory_left_is_measured_with_smaller_sizes(monkeypatch):
    """As when a run in the middle of a shortage looks for a leaner plan."""
    tried, rates = [], card_module._rates

    def rates_in_little(device, divisor):
        tried.append(divisor)
        if divisor < 16:
            raise torch.OutOfMemoryError
        return rates(device, divisor)

    monkeypatch.setattr(card_module, "_rates", rates_in_little)
    assert measure_card(CPU).matmul > 0
    assert tried == [1, 4, 16]
