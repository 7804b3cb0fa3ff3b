"""The last, the best or the average of a run's checkpoints, each with the metadata of a finished LoRA."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.adapters.ship import ShipOptions, Source, ship
from wan_train.core.cli.main import main
from wan_train.core.errors import ConfigError
from wan_train.core.launch.progress import NoDisplay
from wan_train.core.recipe.pipeline import ship_loras
from wan_train.core.recipe.recipe import Recipe
from wan_train.core.settings.files import DatasetSource, LoraFiles, ModelFiles
from wan_train.core.train.checkpoints import ADAPTER, MANIFEST
from wan_train.core.train.chosen import choose_lora, described_lora, lora_of_run
from wan_train.core.train.events import EventWriter
from wan_train.core.train.partway import checkpoint_lora
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.train.helpers import train_in_folder

SAME = ("modelspec.architecture", "modelspec.trigger_phrase", "modelspec.timestep_range", "ss_base_model_version")


@pytest.fixture
def run(tmp_path, job):
    """With checkpoints of its steps 4 and 6, of which 6 has four times the held-out loss."""
    first, *others, last = job.data.samples
    data = replace(job.data, samples=(first, *others, replace(last, held_out=True)))
    made = replace(job, data=data, trigger_word="shp", loop=replace(job.loop, validate_every=2))
    train_in_folder(tmp_path, made, "run", torch.device("cpu"))
    folder = RunFolder(tmp_path / "runs" / "run")
    diary = EventWriter(folder.events_path)
    diary.write("validation", step=4, loss=1.0)
    diary.write("validation", step=6, loss=4.0)
    return folder


def same_weights(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_last_is_the_file_itself_and_best_a_checkpoint(run):
    lora = lora_of_run(run)
    assert lora == run.finished_lora(6)
    assert choose_lora(lora).path == lora
    best = choose_lora(lora, "best")
    assert best.path == checkpoint_lora(run, 4)
    assert best.note == "step 4 of run, the best checkpoint, held-out loss 1.0000"
    assert choose_lora(best.path, "best").path == best.path


def test_of_what_is_no_plain_lora_there_is_no_average(tmp_path, job):
    for kind in ("lokr", "tlora"):
        train_in_folder(tmp_path, replace(job, adapter=replace(job.adapter, kind=kind)), kind, torch.device("cpu"))
    lokr, tlora = (RunFolder(tmp_path / "runs" / kind) for kind in ("lokr", "tlora"))
    with pytest.raises(ConfigError, match=r"lokr has trained the adapter lokr, and only plain .* or train with ema"):
        choose_lora(lora_of_run(lokr), "average")
    assert choose_lora(lora_of_run(tlora), "average").note == "the average of 2 checkpoints of tlora"


def test_the_average_is_that_of_the_command(run, tmp_path):
    found = choose_lora(lora_of_run(run), "average", 0.1)
    assert found.note == "the average of 2 checkpoints of run"
    out = tmp_path / "mean.safetensors"
    assert main(["average", str(run.path), "--out", str(out), "--sigma-rel", "0.1"]) == 0
    assert same_weights(found.path, out)
    assert not same_weights(found.path, lora_of_run(run))
    metadata = read_lora(found.path).metadata
    assert (metadata["wantrain.weights"], metadata["ss_steps"]) == ("post_hoc_ema", "6")


def test_a_checkpoint_of_an_earlier_version_gets_what_it_does_not_say(run, tmp_path):
    now = checkpoint_lora(run, 4)
    assert now is not None
    assert described_lora(now) == now
    modern = read_lora(now).metadata
    (now.parent / MANIFEST).unlink()
    save_file(load_file(now), now, metadata={"format": "pt"})
    before = now.read_bytes()
    path = described_lora(now)
    assert (path.parent, path.name) == (run.path, "test_low_noise_step4.safetensors")
    assert now.read_bytes() == before
    assert same_weights(path, now)
    shipped = ship(tmp_path / "loras", {"low": Source(path)}, ShipOptions(name="x")).files["low"]
    found = read_lora(shipped).metadata
    assert {key: found[key] for key in SAME} == {key: modern[key] for key in SAME}
    assert (found["ss_steps"], found["wantrain.job"]) == ("4", modern["wantrain.job"])


def test_the_command_merges_runs_and_checkpoints(run, tmp_path):
    out = tmp_path / "loras"
    common = ["--out", str(out), "--precision", "fp32"]
    checkpoint = run.checkpoints()[0][1] / ADAPTER
    assert main(["merge", "--low", str(run.path), "--name", "last", *common]) == 0
    assert main(["merge", "--low", str(run.path), "--weights", "best", "--name", "best", *common]) == 0
    assert main(["merge", "--low", str(checkpoint), "--name", "first", *common]) == 0
    last, best, first = (read_lora(out / f"{name}_low_noise.safetensors") for name in ("last", "best", "first"))
    assert [file.metadata["ss_steps"] for file in (last, best, first)] == ["6", "4", "4"]
    assert best.metadata["sshs_model_hash"] == first.metadata["sshs_model_hash"] != last.metadata["sshs_model_hash"]
    assert {file.metadata["modelspec.trigger_phrase"] for file in (last, best, first)} == {"shp"}


@pytest.mark.parametrize(("weights", "step"), [("last", "6"), ("best", "4"), ("average", "6")])
def test_a_recipe_ships_the_weights_that_it_names(run, tmp_path, weights, step):
    files = LoraFiles(folder=str(tmp_path / "loras"), precision="fp32", weights=weights)
    recipe = Recipe(
        name="mine",
        author="Ann",
        dataset=(DatasetSource(folder="x"),),
        models=ModelFiles(low="low", vae="v", text_encoder="t"),
        lora=files,
    )
    (shipped,) = ship_loras(recipe, {"low": run.finished_lora(6)}, NoDisplay())
    assert (shipped.parent, shipped.name) == (tmp_path / "loras", "mine_low_noise.safetensors")
    found = read_lora(shipped)
    assert (found.metadata["ss_steps"], found.metadata["modelspec.author"]) == (step, "Ann")
    assert found.metadata.get("wantrain.weights") == ("post_hoc_ema" if weights == "average" else None)
    wanted = choose_lora(run.finished_lora(6), weights).path
    assert same_weights(shipped, wanted)
    assert same_weights(shipped, run.finished_lora(6)) == (weights == "last")


def test_the_command_lists_checkpoints_and_the_best(run, capsys, tmp_path):
    assert main(["checkpoints", str(run.path)]) == 0
    head, first, second, best = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "held-out", "loss", "score", "motion", "file"]
    assert first.split() == ["4", "1.00000", "100", "-", str(checkpoint_lora(run, 4))]
    assert second.split()[:4] == ["6", "4.00000", "50", "-"]
    assert best == "best: step 4; lowest held-out loss: step 4"
    assert main(["checkpoints", str(tmp_path)]) == 1


def test_what_cannot_be_chosen_is_a_sentence(tmp_path, job):
    lora = tmp_path / "somebodys.safetensors"
    save_file({"x": torch.zeros(1)}, lora)
    with pytest.raises(ConfigError, match=r"somebodys.safetensors does not lie in the folder of a run"):
        choose_lora(lora, "best")
    folder = RunFolder(tmp_path / "short")
    folder.path.mkdir()
    folder.write_job(replace(job, loop=replace(job.loop, steps=1)))
    made = run_job(folder, EventWriter(folder.events_path), torch.device("cpu"), lambda: False)
    with pytest.raises(ConfigError, match="keeps 1 checkpoint, and an average needs two or more"):
        choose_lora(made, "average")
    with pytest.raises(ConfigError, match="no held-out loss was measured"):
        choose_lora(made, "best")
