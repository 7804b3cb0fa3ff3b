"""A dry run of the caching benchmark, on the miniatures."""

import json

from wan_train.benchmarks.caching import main


def test_a_report_is_written(tmp_path, capsys):
    out = tmp_path / "sub" / "caching.json"
    sizes = ["--clip", "32x32x5", "--source", "64x48", "--count", "2", "--captions", "3", "--rounds", "1"]
    main([*sizes, "--device", "cpu", "--out", str(out)])
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    latents, text = report["latents"], report["text"]
    assert latents["encoder_s"] > 0
    assert latents["sequential_s"] > 0
    assert text["difference"] < 1e-5
    assert text["speed_up"] > 0
