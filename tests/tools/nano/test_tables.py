from wan_train.tools.nano.family import ROOT
from wan_train.tools.nano.tables import judged_table, peer_table, with_tables


def test_the_tables_of_the_readme_are_those_of_the_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "run python -m tools.nano tables"


def test_a_table_stands_between_its_marks():
    text = "a\n<!-- no_such.csv -->\nold\n<!-- end -->\nb\n"
    assert with_tables(text) == "a\n<!-- no_such.csv -->\n<!-- end -->\nb\n"


def test_the_table_of_the_few_step_pair():
    rows = [{"model": "base", "shape": "0.975", "motion": "1"}]
    assert judged_table(rows).splitlines() == ["| | shape | motion |", "|---|---|---|", "| base | 97.5% | 100.0% |"]


def test_the_table_of_a_peer_has_ours_first_and_every_seed():
    common = {"concept": "dive", "device": "cpu", "steps": "250", "kept": "0.9", "seed": "1"}
    rows = [
        {**common, "trainer": "musubi-tuner", "learnt": "0.5"},
        {**common, "trainer": "ours", "seed": "3", "learnt": "0.8"},
        {**common, "trainer": "ours", "learnt": "0.6"},
        {**common, "trainer": "ours", "device": "a GPU", "learnt": "0.1"},
    ]
    assert peer_table(rows).splitlines()[2:] == [
        "| dive | a GPU | 250 | ours | 1: 10% | 10% | 90% |",
        "| dive | cpu | 250 | ours | 1: 60%, 3: 80% | 70% | 90% |",
        "| dive | cpu | 250 | musubi-tuner | 1: 50% | 50% | 90% |",
        "",
        "Ours less musubi-tuner's after 250 steps, cpu, in points, with the standard error of 1 pairs: "
        "concept +10, the rest as asked +0.",
    ]
