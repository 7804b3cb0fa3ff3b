import csv
from xml.etree import ElementTree

import pytest
from safetensors.torch import save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.tests.tools.nano.small import STAR, write_small_family
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.nano.bench import Bench, main
from wan_train.tools.nano.concepts import CONCEPTS
from wan_train.tools.nano.lessons import train_here
from wan_train.tools.nano.plan import Run
from wan_train.tools.nano.results import COLUMNS
from wan_train.tools.nano.settings import Settings, changed
from wan_train.tools.nano.workshop import Workshop


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


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_bench_from_end_to_end_and_on(tmp_path, capsys):
    files = write_small_family(tmp_path / "family")
    out = tmp_path / "out"

    def bench(ranks):
        main([
            "--concepts", "star", "--vary", f"adapter.rank={ranks}", "--stages", "low", "--set", "clips=1",
            "--steps", "2", "--measure-every", "1", "--prompts", "1", "--device", "cpu",
            "--family", str(files.root), "--out", str(out),
        ])  # fmt: skip
        return read(out / "results.csv"), capsys.readouterr().out

    (only,), printed = bench("1")
    assert tuple(only) == COLUMNS
    assert only["setting"] == "adapter.rank=1 loop.steps=2 clips=1 stages=low"
    assert "| star | adapter.rank=1 loop.steps=2 clips=1 stages=low | 1 | " in printed

    rows, printed = bench("1,2")
    assert rows[0] == only
    assert "[1/2] star seed 1 adapter.rank=1 loop.steps=2 clips=1 stages=low: has a row" in printed
    assert "[2/2] star seed 1 adapter.rank=2 loop.steps=2 clips=1 stages=low: learnt" in printed
    assert "| star | adapter.rank=1 | 1 | " in printed
    assert "In all of them: loop.steps=2 clips=1 stages=low" in printed
    for row in rows:
        assert [point.split(":")[0] for point in row["curve"].split()] == ["1", "2"]
        assert row["curve"].split(":")[-1] == row["learnt"]
        assert row["kept_curve"].split(":")[-1] == row["kept"]
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
        (["--vary", "adapter.rank=4,x"], "adapter.rank is 'x'; it must be a whole number"),
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
