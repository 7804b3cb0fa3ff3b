"""What musubi-tuner is given on the nano family: our latents and texts in its form, and its command line."""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from wan_train.benchmarks import musubi_nano
from wan_train.core.errors import ConfigError
from wan_train.core.settings.job import DataSpec, TrainSample
from wan_train.tests.tools.nano.small import write_small_family
from wan_train.tools.nano.failure import error_line


@pytest.fixture
def data(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({"latents": torch.randn(16, 5, 8, 8)}, tmp_path / "latents.safetensors")
    save_file({"context": torch.randn(7, 64)}, tmp_path / "text.safetensors")
    sample = TrainSample(
        name="clip",
        latents_path=str(tmp_path / "latents.safetensors"),
        latents_key="1",
        shape=(16, 5, 8, 8),
        text_path=str(tmp_path / "text.safetensors"),
        text_key="2",
        caption="a mulf",
    )
    text = str(tmp_path / "text.safetensors")
    return DataSpec(samples=(sample, sample), empty_text_path=text, empty_text_key="2", text_dim=64)


def test_latents_and_texts_are_ours(tmp_path, data):
    toml = musubi_nano.write_data(tmp_path / "data", data)
    cache = tmp_path / "data" / "cache"
    assert f'cache_directory = "{cache}"' in toml.read_text("utf-8").replace("\\\\", "\\")
    names = sorted(path.name for path in cache.iterdir())
    assert names == [
        "item000_00000-017_0064x0064_wan.safetensors",
        "item000_wan_te.safetensors",
        "item001_00000-017_0064x0064_wan.safetensors",
        "item001_wan_te.safetensors",
    ]
    word = str(musubi_nano.precision()[1]).removeprefix("torch.")
    for name, key in ((names[0], f"latents_5x8x8_{word}"), (names[1], f"varlen_t5_{word}")):
        with safe_open(cache / name, "pt") as file:
            assert list(file.keys()) == [key]
            ours = "latents" if "latents" in key else "context"
            path = data.samples[0].latents_path if ours == "latents" else data.samples[0].text_path
            with safe_open(path, "pt") as own:
                assert torch.equal(file.get_tensor(key), own.get_tensor(ours).to(musubi_nano.precision()[1]))


@pytest.mark.parametrize(("stage", "window"), [("high", ("875", "1000")), ("low", ("0", "875"))])
def test_both_trainers_have_the_same_settings(stage, window):
    ours = musubi_nano.settings_of(3, 250, 125)
    told = musubi_nano.command(
        Path("checkout"), stage, dit=Path("dit"), data=Path("data"), out=Path("out"), seed=3, steps=250, every=125
    )
    given = dict(pairwise(told))
    assert (given["--min_timestep"], given["--max_timestep"]) == window
    assert float(given["--network_dim"]) == ours.adapter.rank
    assert float(given["--network_alpha"]) == ours.adapter.alpha
    assert float(given["--learning_rate"]) == ours.optimizer.learning_rate
    assert (given["--timestep_sampling"], float(given["--discrete_flow_shift"])) == (
        ours.timesteps.sampling,
        ours.timesteps.shift,
    )
    assert int(given["--max_train_steps"]) == ours.loop.steps
    assert json.loads(told[3])["text_dim"] == 64
    assert ours.optimizer.max_grad_norm == 1.0  # its default
    assert ours.schedule.kind == "constant"  # as well


def row(**values):
    usual = {"concept": "dive", "seed": 1, "trainer": "ours", "steps": 2, "device": musubi_nano.device_name()}
    return {**dict.fromkeys(musubi_nano.COLUMNS, "0"), **usual, **values}


def wanted(**values):
    usual = {
        "concepts": ["dive", "star"],
        "seeds": [1],
        "trainers": musubi_nano.TRAINERS,
        "steps": 4,
        "measure_every": 2,
    }
    return argparse.Namespace(**{**usual, **values})


def test_what_is_there_is_not_trained_again(tmp_path):
    out = tmp_path / "peer.csv"
    assert len(musubi_nano.missing_lessons(wanted(), musubi_nano.read_rows(out))) == 4
    musubi_nano.add_rows(out, [row(), row(steps=4), row(concept="star"), row(trainer="musubi-tuner", device="another")])
    musubi_nano.add_rows(out, [row(trainer="musubi-tuner", steps=4, device="another")])
    left = [("dive", 1, "musubi-tuner"), ("star", 1, "ours"), ("star", 1, "musubi-tuner")]
    assert musubi_nano.missing_lessons(wanted(), musubi_nano.read_rows(out)) == left
    with out.open("a", encoding="utf-8") as file:
        file.write("star,1,ours")  # broken off
    assert musubi_nano.missing_lessons(wanted(), musubi_nano.read_rows(out)) == left


def test_a_table_of_an_older_form_is_left_alone(tmp_path):
    (tmp_path / "peer.csv").write_text("concept,seed\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="other columns"):
        musubi_nano.read_rows(tmp_path / "peer.csv")


@pytest.mark.grid(8, "benchmarks by their commands")
def test_trainings_side_by_side_put_their_rows_into_one_file(tmp_path, capsys):
    """Ours alone: the peer is no part of this repository."""
    files, out, work = write_small_family(tmp_path / "family"), tmp_path / "peer.csv", tmp_path / "work"
    told = ["--family", str(files.root), "--out", str(out), "--work", str(work), "--musubi", str(tmp_path)]
    told += ["--trainers", "ours", "--concepts", "dive", "--seeds", "1", "2", "--steps", "2", "--measure-every", "1"]
    musubi_nano.main([*told, "--prompts", "1", "--processes", "2"])
    rows = musubi_nano.read_rows(out)
    assert sorted((each["seed"], each["steps"]) for each in rows) == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert "2 trainings are to be made." in capsys.readouterr().out
    before = out.read_bytes()
    musubi_nano.main([*told, "--prompts", "1", "--processes", "2"])
    assert "0 trainings are to be made." in capsys.readouterr().out
    assert out.read_bytes() == before


@pytest.mark.grid(8, "benchmarks by their commands")
def test_a_training_that_fails_says_why_in_its_line(tmp_path, capsys):
    """musubi-tuner's, of which there is nothing in the folder that is named."""
    files, work = write_small_family(tmp_path / "family"), tmp_path / "work"
    told = ["--family", str(files.root), "--out", str(tmp_path / "peer.csv"), "--work", str(work)]
    told += ["--musubi", str(tmp_path), "--trainers", "musubi-tuner", "--concepts", "dive", "--seeds", "1"]
    musubi_nano.main([*told, "--steps", "2", "--measure-every", "1", "--prompts", "1", "--processes", "1"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dive, seed 1, musubi-tuner")]
    log = work / "log-dive-1-musubi-tuner.txt"
    assert line == f"dive, seed 1, musubi-tuner: failed: {error_line(log.read_text('utf-8'))} (all of it: {log})"
    assert "Error: " in line
