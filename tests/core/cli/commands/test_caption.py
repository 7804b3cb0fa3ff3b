"""`wantrain caption`, on miniature files with a miniature model."""

from wan_train.core.cli.main import main
from wan_train.tests.core.captioning.conftest import dataset, tiny_model  # noqa: F401


def test_it_writes_prints_and_goes_on(dataset, tiny_model, capsys):  # noqa: F811
    command = ["caption", str(dataset), "--model", str(tiny_model), "--device", "cpu", "--max-tokens", "12"]
    command += ["--kind", "motion", "--must-say", "orbit 180 degrees"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 captions written"
    assert lines[0].startswith("more/blue.txt: orbit 180 degrees, ")
    assert (dataset / "moves.txt").read_text("utf-8").startswith("orbit 180 degrees, ")
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == ["0 captions written, 3 kept as they are"]


def test_what_is_wrong_is_told_before_anything_is_loaded(dataset, tiny_model, caplog):  # noqa: F811
    assert main(["caption", str(dataset), "--model", str(dataset)]) == 1
    assert "holds no config.json" in caplog.text
    assert main(["caption", str(dataset), "--model", str(tiny_model), "--kind", "photo"]) == 1
    assert "photo" in caplog.text
    assert main(["caption", str(dataset), "--model", str(tiny_model), "--num-frames", "0"]) == 1
    assert "num_frames must be at least 1, got 0" in caplog.text
    assert not list(dataset.rglob("*.txt"))
