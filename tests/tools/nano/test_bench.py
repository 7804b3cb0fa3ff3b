import csv
from xml.etree import ElementTree

import pytest
from safetensors.torch import save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.errors import ConfigError
from wan_train.tests.tools.nano.test_teach import write_small_family
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.nano.bench import (
    COLUMNS,
    Bench,
    Results,
    Run,
    combinations,
    groups,
    main,
    parse_varied,
    plot,
    table,
)
from wan_train.tools.nano.concepts import CONCEPTS
from wan_train.tools.nano.teach import Settings, Workshop, changed, train_here

STAR = CONCEPTS["star"]


def row(**values):
    shares = dict.fromkeys(("learnt", "leaked", "bled", "kept", "kept_base"), "0.5")
    given = {"concept": "star", "seed": "1", "setting": "defaults", "seconds": "9.0", "curve": "2:0.5", **shares}
    return {name: {**given, **values}.get(name, "") for name in COLUMNS}


# Planning ---------------------------------------------------------------------------------------------------------


def test_every_combination_is_made_once():
    varied = parse_varied(["adapter.rank=4,16,4", "adapter.targets=ffn,self_attn+ffn"])
    made = combinations(Settings(clips=3), varied)
    assert [(s.adapter.rank, s.adapter.targets) for s in made] == [
        (4, ("ffn",)), (4, ("self_attn", "ffn")), (16, ("ffn",)), (16, ("self_attn", "ffn")),
    ]  # fmt: skip
    assert {s.clips for s in made} == {3}
    assert combinations(Settings(), []) == [Settings()]


@pytest.mark.parametrize("text", ["adapter.rank", "adapter.rank=", "adapter.rank=4,"])
def test_malformed_variations_are_refused(text):
    with pytest.raises(ConfigError, match="FIELD=VALUE,VALUE"):
        parse_varied([text])


def test_a_setting_is_named_by_what_differs_from_the_defaults():
    assert Run(STAR, Settings()).setting == "defaults"
    settings = changed(changed(Settings(clips=5), "adapter.targets", "ffn+self_attn"), "loop.seed", "9")
    assert Run(STAR, settings).setting == "clips=5 adapter.targets=ffn+self_attn"


def test_a_row_is_known_by_everything_that_decides_it(tmp_path):
    def key(files, run=Run(STAR, Settings()), num_prompts=2, measure_every=5):  # noqa: B008
        workshop = Workshop(files=files, folder=tmp_path)
        return Bench(workshop, num_prompts=num_prompts, measure_every=measure_every, train=train_here).key(run)

    files, other = (write_small_family(tmp_path / name) for name in ("one", "other"))
    assert key(files) == key(other)
    save_file(wan_vae(9), files.vae)
    keys = [
        key(other), key(files), key(other, Run(CONCEPTS["moon"], Settings())), key(other, num_prompts=3),
        key(other, measure_every=6), key(other, Run(STAR, changed(Settings(), "loop.seed", "7"))),
        key(other, Run(STAR, changed(Settings(), "memory.checkpointing", "true"))),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


# Running ----------------------------------------------------------------------------------------------------------


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_bench_from_end_to_end_and_on(tmp_path, capsys):
    files = write_small_family(tmp_path / "family")
    out = tmp_path / "out"

    def bench(ranks):
        main([
            "--concepts", "star", "--vary", f"adapter.rank={ranks}", "--stages", "low", "--set", "clips=1",
            "--steps", "2", "--measure-every", "1", "--prompts", "2", "--device", "cpu",
            "--family", str(files.root), "--out", str(out),
        ])  # fmt: skip
        return read(out / "results.csv"), capsys.readouterr().out

    (only,), printed = bench("1")
    assert tuple(only) == COLUMNS
    assert only["setting"] == "clips=1 stages=low adapter.rank=1 loop.steps=2"
    assert "| star | clips=1 stages=low adapter.rank=1 loop.steps=2 | 1 | " in printed

    rows, printed = bench("1,2")
    assert rows[0] == only
    assert "[1/2] star seed 1 clips=1 stages=low adapter.rank=1 loop.steps=2: has a row" in printed
    assert "[2/2] star seed 1 clips=1 stages=low adapter.rank=2 loop.steps=2: learnt" in printed
    assert "| star | adapter.rank=1 | 1 | " in printed
    assert "In all of them: clips=1 stages=low loop.steps=2" in printed
    for row in rows:
        assert [point.split(":")[0] for point in row["curve"].split()] == ["1", "2"]
        assert row["curve"].split(":")[-1] == row["learnt"]
        assert (row["steps_to_90"], row["loss_high"]) == ("", "")
        assert float(row["loss_low"]) > 0
        assert float(row["seconds"]) > 0
    assert ElementTree.parse(out / "plot.svg").getroot().tag.endswith("svg")
    assert not list(out.rglob("state.pt"))
    assert {read_lora(path).ranks for path in out.glob("runs/*/*/*.safetensors")} == {(1,), (2,)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "adapter.size=4"], "no setting 'adapter.size'"),
        (["--vary", "adapter.rank=4,x"], "adapter.rank is 'x'; it must be of type int"),
        (["--vary", "loop.seed=1,2"], "loop.seed is decided by --seeds"),
        (["--set", "stages=low"], "stages is decided by --stages"),
        (["--set", "loop.keep_last=5"], "loop.keep_last is decided by --measure-every"),
        (["--stages", "high,all"], "--stages has 'all'; it takes high, low, both"),
        (["--measure-every", "0"], "at least 1; got 0"),
        (["--prompts", "0"], "at least 1 prompt, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["--concepts", "star", "--out", str(tmp_path), "--device", "cpu", *arguments])
    assert not list(tmp_path.glob("runs"))
    assert not list(tmp_path.glob("data"))


def test_a_csv_of_another_version_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("concept,seed\n")
    with pytest.raises(ConfigError, match=r"results\.csv has other columns"):
        Results(tmp_path / "results.csv")


# Showing ----------------------------------------------------------------------------------------------------------


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


def test_the_plot_places_what_it_shows():
    rows = [row(learnt="1", kept="0", setting="a<b=1"), row(learnt="0", kept="1", kept_base="1", setting="c=2")]
    root = ElementTree.fromstring(plot(rows))
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert {"star", "a<b=1", "c=2", "never"} <= set(texts)
    circles = [node for node in root.iter() if node.tag.endswith("circle") and node.get("r") == "5"]
    legend, marks = circles[:2], [(float(node.get("cx")), float(node.get("cy"))) for node in circles[2:]]
    assert len(legend) == 2
    (kept_a, learnt_a), (kept_c, learnt_c) = marks[:2], marks[2:]
    assert kept_a[0] == learnt_c[0] < learnt_a[0] == kept_c[0]
    assert kept_a[1] == learnt_a[1] < learnt_c[1]
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(0 <= float(node.get("x")) < width and 0 < float(node.get("y")) <= height
               for node in root.iter() if node.tag.endswith("text"))  # fmt: skip


def test_one_setting_alone_keeps_its_name():
    assert [g.setting for g in groups([row(setting="adapter.rank=4"), row(setting="adapter.rank=4", seed="2")])] == [
        "adapter.rank=4"
    ]
