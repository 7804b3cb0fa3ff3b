import pytest
import torch
from safetensors.torch import load_file
from wan_train.tests.tools.nano.small import QUICK
from wan_train.tools.nano import teach as module
from wan_train.tools.nano.settings import flat


@pytest.mark.grid(8, "benchmarks by their commands")
def test_the_command_teaches_in_a_worker_measures_and_draws(files, lessons, tmp_path, monkeypatch, capsys):
    """The worker's LoRA is the one that was trained in this process with the same settings."""
    values = flat(QUICK)
    names = ("clips", "adapter.rank", "adapter.alpha", "optimizer.learning_rate", "loop.batch_size", "loop.seed")
    given = [part for name in names for part in ("--set", f"{name}={values[name]}")]
    common = ["--family", str(files.root), "--out", "here", "--device", "cpu", "--prompts", "1", "--worker"]
    monkeypatch.chdir(tmp_path)
    module.main(["--concept", "star", "--steps", "2", *common, *given, "--set", "stages=high"])
    printed = capsys.readouterr().out
    assert "high: loss" in printed
    assert "star as 'zorp' after 2 steps, 1 prompts" in printed
    with module.Image.open(tmp_path / "here" / "star.png") as sheet:
        assert sheet.width > 2 * module.SHEET_FRAMES * 64
    (lora,) = tmp_path.glob("here/runs/star_*/*.safetensors")
    tensors = load_file(lora)
    for name, tensor in load_file(lessons["high"].lora).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("given", "message"), [("rank", "FIELD=VALUE"), ("adapter.rank=x", "must be a whole number")])
def test_the_command_refuses_in_one_sentence(files, tmp_path, given, message):
    with pytest.raises(SystemExit, match=message):
        module.main(["--concept", "star", "--out", str(tmp_path), "--family", str(files.root), "--set", given])
