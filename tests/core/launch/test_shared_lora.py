"""One LoRA for both experts in processes of their own: killed halfway, and from a recipe to its file."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.other_files import read_adapter
from wan_train.core.errors import ConfigError
from wan_train.core.launch.process import Worker
from wan_train.core.recipe.checks import check_models
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.core.settings.job import ExpertTurns, ModelSpec
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.events import read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.launch.faulty import Gate
from wan_train.tests.core.launch.fixtures import models, pictures, recipe, tables, wantrain  # noqa: F401
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tools.miniature import dit_metadata, wan_dit


@pytest.fixture
def shared(tmp_path, job):
    low = tmp_path / "low.safetensors"
    save_file(wan_dit(SIZE, seed=1), low, metadata=dit_metadata(SIZE))
    return replace(
        job,
        stage="both",
        timesteps=TimestepOptions(),
        other_expert=ModelSpec(path=str(low), identity=inspect(low).identity),
        turns=ExpertTurns(every=3, boundary=0.875),
        loop=replace(job.loop, steps=40, checkpoint_every=4),
    )


def begin(folder, job):
    folder.mkdir()
    run = RunFolder(folder)
    run.write_job(job)
    return run


@pytest.mark.grid(2, "killed")
def test_killed_halfway_it_ends_where_one_run_ends(tmp_path, shared):
    """Between two checkpoints, in the middle of a turn: it goes on from a step of one expert's, to the same bits."""
    gate = Gate(tmp_path, update=11)
    shared = gate.on_the_way_of(shared)
    whole, killed = begin(tmp_path / "whole", shared), begin(tmp_path / "killed", shared)
    worker = Worker(killed, environment=gate.environment)
    gate.await_run()
    worker.process.kill()
    worker.process.wait()
    assert killed.checkpoints()[-1][0] == 8
    for run in (killed, whole):
        worker = Worker(run, environment=gate.environment)
        assert worker.process.wait() == 0, worker.log_tail()
    one, other = (load_file(run.finished_lora(40)) for run in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert dict(read_history(whole.events_path).losses) == dict(read_history(killed.events_path).losses)


def of_both(tables, **changes):  # noqa: F811
    return {**tables, "shared_lora": True, "alternate_every": 2, **changes}


def test_a_recipe_makes_one_file_of_both_experts(tables, tmp_path, wantrain):  # noqa: F811
    path = tmp_path / "both.json"
    path.write_text(json.dumps(of_both(tables, loop={**tables.get("loop", {}), "steps": 4})))
    code, said = wantrain("train", path)
    assert code == 0, said
    work = tmp_path / tables.get("work", "wan_train")
    (file,) = work.rglob("loras/*.safetensors")
    lora = read_adapter(file)
    assert lora.metadata["wantrain.experts"] == "high,low"
    assert lora.expert is None
    assert lora.metadata["modelspec.timestep_range"] == "0,1000"
    (run,) = [RunFolder(job.parent) for job in work.rglob("runs/*/job.json")]
    job = run.read_job()
    assert (job.stage, job.turns) == ("both", ExpertTurns(every=2, boundary=0.875))
    assert job.other_expert.path == tables["models"]["low"]
    code, said = wantrain("train", path)
    assert code == 0, said
    assert "finished before" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"alternate_every": 0}, "alternate_every is 0: set it to 10"),
        ({"high": {"loop": {"steps": 3}}}, r"\[high\] has settings, but with shared_lora there is one LoRA"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(tables, tmp_path, change, sentence):  # noqa: F811
    with pytest.raises(ConfigError, match=sentence):
        recipe_from_tables(of_both(tables, **change), tmp_path)


def test_one_expert_alone_is_refused(tables, tmp_path):  # noqa: F811
    files = {name: path for name, path in tables["models"].items() if name != "low"}
    with pytest.raises(ConfigError, match=r"models names one alone: give models\.high and models\.low"):
        recipe_from_tables(of_both(tables, models=files), tmp_path)


def test_the_same_file_for_both_is_refused(tables, tmp_path):  # noqa: F811
    files = {**tables["models"], "low": tables["models"]["high"]}
    with pytest.raises(ConfigError, match="high noise expert by its name, but it is given as the other one"):
        check_models(recipe_from_tables(of_both(tables, models=files), tmp_path))
