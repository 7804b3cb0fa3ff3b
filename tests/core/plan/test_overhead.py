"""What a process takes beside its tensors: read, counted against a budget, and promised."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.plan.advice import explain, what_would_fit
from wan_train.core.plan.overhead import OtherPrograms, measure_overhead, parse, plausible
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.planning import within
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

GIB = 2**30


def test_what_nvidia_smi_prints():
    text = "GPU-5a7b2c1e-0000-1111-2222-333344445555, 1024\nGPU-other, [N/A]\n\nNo devices were found\n"
    assert parse(text) == {"5a7b2c1e-0000-1111-2222-333344445555": GIB}


def test_what_cannot_be_right_is_not_taken():
    assert plausible(600 * 2**20) == 600 * 2**20
    assert plausible(3 * GIB) is None
    assert plausible(3 * GIB, ranks=2) == 3 * GIB  # the links between GPUs take memory, too
    assert plausible(-5) is None  # another program has ended
    assert plausible(9 * GIB) is None  # another has begun


def test_a_cpu_has_none():
    assert measure_overhead(torch.device("cpu"), 0) is None


def test_a_machine_without_nvidia_smi_says_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    others = OtherPrograms()
    others.wait()
    assert others._used == {}


def test_the_budget_is_for_the_whole_process():
    card = replace(CARD, free=20 * GIB, overhead=GIB // 2)
    assert within(card, MemoryOptions(budget_gb=8)).free == 7.5 * GIB
    assert within(card, MemoryOptions(budget_gb=30)).free == 20 * GIB
    assert within(card, MemoryOptions()).free == 20 * GIB
    assert within(card, MemoryOptions(budget_gb=0.25)).free == 0


@pytest.mark.parametrize("overhead", [0, GIB])
def test_the_promise_is_what_nvidia_smi_will_show(overhead):
    card = within(replace(CARD, free=20 * GIB, overhead=overhead), MemoryOptions(budget_gb=9))
    planner = Planner(
        task=Task(sizes=WanConfig()), buckets=[Bucket((16, 1, 64, 64))], card=card, plan=Plan(precision="fp8")
    )
    choice = planner.choose()
    assert choice.vram + overhead <= 9 * GIB
    assert f"{(choice.vram + overhead) / GIB:.1f} of 9.0 GB" in explain(planner, choice, steps=10)
    small = replace(planner, card=replace(card, free=GIB))
    assert f"of which {(small.limits().vram + overhead) / GIB:.1f} GB can be used" in what_would_fit(small)
