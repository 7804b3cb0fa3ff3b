import pytest
from wan_train.core.errors import ConfigError
from wan_train.tests.tools.nano.small import row
from wan_train.tools.nano.results import Results, groups, table


def test_a_csv_of_another_version_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("concept,seed\n")
    with pytest.raises(ConfigError, match=r"results\.csv has other columns"):
        Results(tmp_path / "results.csv")


def test_seeds_are_put_together_and_what_all_share_is_left_out():
    rows = [
        row(setting="clips=3 adapter.rank=4", learnt="0.5", steps_to_90="", curve="5:0.25 10:0.5"),
        row(setting="clips=3", learnt="0.25"),
        row(setting="clips=3 adapter.rank=4", seed="2", learnt="1", steps_to_90="10", curve="5:0.75 10:1"),
        row(setting="clips=3", concept="moon", kept=""),
    ]
    found = groups(rows)
    assert [(g.concept, g.setting, len(g.rows)) for g in found] == [
        ("star", "adapter.rank=4", 2), ("star", "defaults", 1), ("moon", "defaults", 1),
    ]  # fmt: skip
    first = found[0]
    assert (first.mean("learnt"), first.steps_to_90(), first.curve()) == (0.75, "never, 10", [(5, 0.5), (10, 0.75)])
    assert found[2].mean("kept") is None
    lines = table(rows).splitlines()
    assert lines[2].startswith("| star | adapter.rank=4 | 2 | 75% | 50% |")
    assert lines[-1] == "In all of them: clips=3"
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_one_setting_alone_keeps_its_name():
    assert [g.setting for g in groups([row(setting="adapter.rank=4"), row(setting="adapter.rank=4", seed="2")])] == [
        "adapter.rank=4"
    ]
