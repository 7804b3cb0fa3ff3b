"""`wantrain run` from a folder of pictures to two LoRA files: at once, in turn, stopped, killed, and by way of a recipe.

On two GPUs where there are two, else on two names for the CPU.
"""

import argparse
import io
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.cli.commands import run as run_command
from wan_train.core.cli.main import main
from wan_train.core.errors import ConfigError
from wan_train.core.launch.alternating import AlternatingTurn
from wan_train.core.launch.worker import device_lock
from wan_train.core.recipe.jobs import plan_existing
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests import warm
from wan_train.tests.turns import waits_of

DEVICES = [f"{'cuda' if torch.cuda.device_count() > 1 else 'cpu'}:{index}" for index in range(2)]
NAMES = {"high": "WAN2.2-HighNoise_pics", "low": "WAN2.2-LowNoise_pics"}
SMALL = {"dataset.width": 32, "dataset.height": 32, "dataset.trigger_word": "shp", "adapter.rank": 4,
         "precision": "fp32", "epochs": 20, "loop.checkpoint_every": 10}  # fmt: skip


@pytest.fixture(scope="module")
def arguments(models, pictures):
    changes = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    return ["--dataset", pictures, "--title", "pics", "--author", "Ann", "--models", models, *changes]


def runs_of(work):
    """Stage -> run folder."""
    return {path.name.split("_")[1]: RunFolder(path) for path in (work / "runs").glob("pics_*")}


def times(folder, *kinds):
    return [e["time"] for e in EventReader(folder.events_path).read() if e["event"] in kinds]


def same_weights(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def await_step(work, stage, step, timeout=300.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        folder = runs_of(work).get(stage)
        if folder and max(read_history(folder.events_path).losses, default=0) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} of {stage} in {work}")


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """Both experts at once, never stopped: the work folder, and what was said."""
    folder = tmp_path_factory.mktemp("whole")
    result = warm.run("run", *arguments, "--work", folder, "--devices", ",".join(DEVICES), cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stderr


def test_two_at_once(whole):
    folder, said = whole
    steps = {stage: times(run, "step") for stage, run in runs_of(folder).items()}
    assert {stage: len(found) for stage, found in steps.items()} == {"high": 60, "low": 60}  # 20 epochs of 3 pictures
    begun, over = ([said.index(f"{stage}: {what}") for stage in NAMES] for what in ("training on ", "finished"))
    assert max(begun) < min(over)
    assert "high: 60/60  loss" in said
    assert "low: 60/60  loss" in said


def test_files_are_named_and_labelled_as_in_the_guide(whole):
    folder, _ = whole
    assert {path.stem for path in (folder / "loras").iterdir()} == set(NAMES.values())
    for stage, name in NAMES.items():
        file = read_lora(folder / "loras" / f"{name}.safetensors")
        assert file.expert == stage
        assert (file.metadata["modelspec.title"], file.metadata["modelspec.author"]) == (name, "Ann")
        assert file.metadata["modelspec.timestep_range"] == {"high": "875,1000", "low": "0,875"}[stage]
        assert file.metadata["ss_max_train_steps"] == "60"


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is sent otherwise on Windows")
def test_in_turn_stopped_and_killed_gives_the_same(whole, arguments, wantrain, tmp_path):
    """The recipe is written and trained on one device: Ctrl+C in the first expert, a kill in the second."""
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    recipe = tmp_path / "job.json"
    work = tmp_path / "work"
    assert run_command.run(parser.parse_args([*map(str, arguments), f"--work={work}", f"--write={recipe}"])) == 0
    shutil.copytree(whole[0] / "cache", work / "cache")
    train = ("train", "job.json", "--devices", DEVICES[1])

    process = wantrain(*train, start=True)
    await_step(work, "high", 5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 3, said
    high = runs_of(work)["high"]
    stopped_at = max(read_history(high.events_path).losses)
    assert high.checkpoints()[-1][0] == stopped_at < 60
    assert f"high: stopped at step {stopped_at}; start again to go on" in said

    process = wantrain(*train, start=True)
    await_step(work, "low", 5)
    process.kill()
    process.wait()
    process.stdout.close()
    assert high.finished_lora(60)
    assert times(high, "finished")[0] < times(runs_of(work)["low"], "start")[0]  # in turn

    code, said = wantrain(*train)  # at once: the worker that was left behind may still write its checkpoint
    assert code == 0, said
    assert "high: finished before" in said
    assert "low: going on from step" in said
    for name in NAMES.values():
        assert same_weights(work / "loras" / f"{name}.safetensors", whole[0] / "loras" / f"{name}.safetensors")


@pytest.mark.grid(3, "turns of two processes")
def test_in_turns_on_one_device_gives_the_same(whole, arguments, wantrain, tmp_path):
    """Both workers are started on it, and hand it to each other. The test has it until both are there."""
    work = tmp_path / "work"
    shutil.copytree(whole[0] / "cache", work / "cache")
    turns = ("--set", "alternate_every=6", "--work", work, "--devices", DEVICES[0])
    turn = AlternatingTurn(device_lock(torch.device(DEVICES[0])), alternates=True)
    assert turn.acquire()
    try:
        process = wantrain("run", *arguments, *turns, start=True)
        end = time.monotonic() + 300
        while [waits_of(run.events_path) for run in runs_of(work).values()] != [1, 1]:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        turn.release()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert f"low: takes turns on {DEVICES[0]}, 6 steps each time" in said
    runs = runs_of(work)
    for stage, name in NAMES.items():
        assert same_weights(work / "loras" / f"{name}.safetensors", whole[0] / "loras" / f"{name}.safetensors")
        steps = {event["step"] for event in EventReader(runs[stage].events_path).read() if event["event"] == "turn"}
        assert all(step % 6 == 0 for step in steps)
    first = min(runs, key=lambda stage: times(runs[stage], "step")[0])
    assert len(times(runs[first], "turn")) >= 4


def test_a_lora_brings_its_own_job(whole, tmp_path):
    """What was shipped holds the whole job, to be trained elsewhere; beside its run folder it belongs to that run."""
    low = runs_of(whole[0])["low"]
    planned = plan_existing(whole[0] / "loras" / f"{NAMES['low']}.safetensors", tmp_path / "again", [DEVICES[1]])
    assert planned.folder.path == tmp_path / "again" / "runs" / low.path.name
    assert planned.job == replace(low.read_job(), device="auto")
    assert plan_existing(low.finished_lora(60), None, []).folder == low
    bare = tmp_path / "bare.safetensors"
    save_file({"x": torch.zeros(1)}, bare)
    with pytest.raises(ConfigError, match="holds no job of this trainer: name its run folder"):
        plan_existing(bare, None, [])


def test_questions_have_defaults(arguments, tmp_path, monkeypatch, capsys):
    """In a terminal: recipe, folder, title, author and four models are asked for; Enter takes what is in brackets."""
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    options = parser.parse_args([*map(str, arguments[6:])])  # without folder, title and author
    answers = ["", f'"{arguments[1]}"', "", "Bo", "", str(tmp_path / "mine.safetensors"), "", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(answers) + "\n"))
    recipe = run_command.recipe_of(options, ask=True)
    assert "Name of the LoRA (title suffix) [mylora]: " in capsys.readouterr().out
    assert (recipe.dataset[0].folder, recipe.name, recipe.author) == (str(arguments[1]), "mylora", "Bo")
    assert recipe.lora.high == "WAN2.2-HighNoise_mylora"
    assert (Path(recipe.models.high).name, Path(recipe.models.low).name) == (
        "mini_high_noise.safetensors",
        "mine.safetensors",
    )


def test_mistakes_are_one_sentence(wantrain, tmp_path, models, caplog):
    code, said = wantrain("run", "--models", models)
    assert code == 1
    assert "the dataset folder is not known: give it with --dataset." in said
    assert "Traceback" not in said
    assert main(["run", "--dataset", str(tmp_path), "--models", str(tmp_path), "--author", "x"]) == 1
    assert "the high noise model is not known: give it with --high. It was not found" in caplog.text


def test_scan_prints_what_the_node_prints(pictures, capsys, caplog):
    changes = ("dataset.width=32", "dataset.height=32", "dataset.trigger_word=shp")
    assert main(["scan", str(pictures), *(part for change in changes for part in ("--set", change))]) == 0
    assert "0 clips, 3 images: 3 samples an epoch\nbuckets: 32x32x1 (3)\n" in capsys.readouterr().out
    assert main(["scan", str(pictures), "--set", "loop.seed=1"]) == 1
    assert "a scan of a folder has the unknown field 'loop'" in caplog.text
