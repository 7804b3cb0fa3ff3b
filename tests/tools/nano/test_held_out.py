import csv

from wan_train.tools.nano import held_out

WIDE = {"seed": "1", "expert": "low", "trained": "0.5", "held_out": "0.6", "more": "0.7"}


def test_the_loss_is_taken_at_each_mark_of_both_experts(files, tmp_path, capsys):
    told = ["--out", str(tmp_path / "rows.csv"), "--work", str(tmp_path / "work"), "--family", str(files.root)]
    told += ["--seeds", "1", "--marks", "2"]
    for assignment in ("loop.steps=2", "loop.batch_size=2", "clips=2", "others=2", "optimizer.learning_rate=0.05"):
        told += ["--set", assignment]
    held_out.main(told)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["expert"]) for row in rows] == [
        (step, expert) for step in ("0", "1", "2") for expert in ("high", "low")
    ]
    for name in ("trained", "held_out", "more"):
        assert len({row[name] for row in rows}) == len(rows), name  # each step changed the weights
    assert capsys.readouterr().out.count("noise |") == 6


def test_the_table_has_means_over_seeds():
    rows = [{**WIDE, "step": "0"}, {**WIDE, "seed": "2", "step": "0", "more": "0.9"}, {**WIDE, "step": "40"}]
    assert held_out.table(rows).splitlines()[2:] == [
        "| low noise | 0 | 0.500 | 0.600 | 0.800 |",
        "| low noise | 40 | 0.500 | 0.600 | 0.700 |",
    ]
