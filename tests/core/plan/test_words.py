"""The words of plans come from the options' declarations."""

from dataclasses import dataclass, fields

import pytest
from wan_train.core.plan import words
from wan_train.core.plan.plan import Plan
from wan_train.core.plan.words import changed, differences, label, option_of, told, words_of
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.option import Widget, option
from wan_train.core.settings.parallel import ParallelOptions

HELD = Plan(streamed_blocks=38, stream_from="mapped", offload_inputs=True, keep_attention=3, shards=4)


def test_differences():
    assert differences(Plan(), Plan(streamed_blocks=3, offload_inputs=True)) == ["streamed_blocks", "offload_inputs"]


def test_a_plan_tells_what_is_not_plain():
    assert list(told(Plan(), 40)) == []
    assert list(told(HELD, 40)) == [
        "base spread over 4 GPUs",
        "block swap of 38 of 40 blocks",
        "swapped blocks from files",
        "activation offload",
        "attention of 3 of 40 blocks kept",
    ]
    assert list(told(Plan(checkpointing=False, stream_from="pageable"), 40)) == ["no gradient checkpointing"]


def test_what_changed_is_told_by_its_new_value():
    assert changed(HELD, HELD) == ""
    assert changed(HELD, Plan(streamed_blocks=40, ffn_pieces=4, cuda_graphs="off")) == (
        "base whole on each GPU, block swap of 40 blocks, swapped blocks from pinned memory, feed-forward chunked into 4, "
        "no activation offload, no attention kept, no CUDA graphs"
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Plan) if field.name != "precision"])
def test_every_field_of_a_plan_has_words_for_all_its_values(name):
    """Also one that is still to come."""
    if name in words._OF_PLANS_ALONE:
        assert words_of(name, True) != words_of(name, False)
        return
    item = option_of(name)
    values = item.choices or ((False, True) if item.kinds == (bool,) else (int(item.range[0]), 7))
    said = [words_of(name, value) for value in ((1, 2) if name == "shards" else values)]
    assert all(said)
    assert len(set(said)) == len(said)


def test_a_name_that_is_changed_in_its_declaration_is_another_word_everywhere(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class ChangedMemory(MemoryOptions, group="memory"):
        streamed_blocks: int | None = option(
            None,
            help="Block swap.",
            unit="blocks",
            in_key=False,
            in_plans="{} blocks visiting",
            widget=Widget("LoadWanDiT", "visitors", 3),
        )

    @dataclass(frozen=True, kw_only=True)
    class ChangedParallel(ParallelOptions, group="parallel"):
        context: int = option(0, help="Shared clips.", in_key=False, widget=Widget("TrainLoRAStage", "sharers", 110))

    assert label("context") == "context_parallel"
    monkeypatch.setattr(words, "MemoryOptions", ChangedMemory)
    monkeypatch.setattr(words, "ParallelOptions", ChangedParallel)
    assert label("context") == "sharers"
    assert label("streamed_blocks") == "visitors"
    assert "38 of 40 blocks visiting" in list(told(HELD, 40))
    assert changed(Plan(), HELD).startswith("base spread over 4 GPUs, 38 blocks visiting, ")
