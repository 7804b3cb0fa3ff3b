"""What version 9905e68 left on disk means the same today: its run is found and goes on, its cache is hit, its jobs are read.

tests/fixtures/9905e68/README.md says how it was made.
"""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.cli.display import Display
from wan_train.core.cli.main import main
from wan_train.core.recipe.jobs import check_job
from wan_train.core.recipe.pipeline import cache, check_recipe, jobs, scan
from wan_train.core.recipe.recipe import read_recipe
from wan_train.core.settings.job import job_from_json
from wan_train.core.train.events import read_history
from wan_train.core.train.find_run import find_run
from wan_train.core.train.run_folder import RunFolder

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "9905e68"
MADE_IN = "/tmp/wantrain-9905e68"  # stands in the files of the run
KEYS = json.loads((FIXTURE / "keys.json").read_text(encoding="utf-8"))
LONGER = 7  # steps of the run in longer.safetensors
MADE_WITH = "2.15.0"  # of PyTorch


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the fixture, with its own paths in its files, as if it had been made here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as it was made: the number of threads decides the order of a sum
    folder = tmp_path / "old"
    shutil.copytree(FIXTURE, folder)
    for path in [*folder.rglob("job.json"), *folder.rglob("encoders.json"), *folder.rglob("files.json")]:
        path.write_text(path.read_text(encoding="utf-8").replace(MADE_IN, folder.as_posix()), encoding="utf-8")
    return folder


@pytest.fixture
def recipe(old):
    return read_recipe(old / "recipe.json")


def run_of(old) -> RunFolder:
    (path,) = (old / "work" / "runs").iterdir()
    return RunFolder(path)


def built_anew(recipe):
    """The job that the recipe gives today, with everything in the cache."""
    silent = Display(io.StringIO())
    return jobs(recipe, check_recipe(recipe), cache(recipe, scan(recipe, silent, report=False), silent))["high"]


def files_of(cached: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in cached.rglob("*.safetensors")}


def test_the_job_is_read_and_can_be_trained(old):
    folder = run_of(old)
    job = folder.read_job()
    assert folder.path.name == f"old_high_{job.key}"
    check_job(job, folder.path)
    assert RunFolder(FIXTURE / "work" / "runs" / folder.path.name).read_job().key == job.key


def test_what_it_encoded_is_not_encoded_again(old, recipe):
    before = files_of(recipe.cache_path)
    assert len(before) == 9  # 4 pictures, their captions and the empty one
    (recipe.cache_path / "encoders.json").unlink()  # so that the encoders are read, and their identities made anew
    built_anew(recipe)
    assert files_of(recipe.cache_path) == before


def test_a_job_built_anew_finds_the_run(old, recipe):
    folder, job = run_of(old), built_anew(recipe)
    assert find_run(recipe.runs_path, job) == folder
    # The shift of previews is now that of Preview LoRA; no key holds it.
    assert replace(job, previews=replace(job.previews, shift=5.0)) == folder.read_job()
    assert folder.finished_lora(job.loop.steps) is not None
    assert len(read_history(folder.events_path).losses) == job.loop.steps


@pytest.mark.parametrize("row", KEYS, ids=lambda row: "-".join(f"{k}={v}" for k, v in row["change"].items()) or "as is")
def test_the_key_of_a_job_with_any_setting(row):
    job = json.loads(next(FIXTURE.glob("work/runs/*/job.json")).read_text(encoding="utf-8"))
    for name, value in row["change"].items():
        *groups, field = name.split(".")
        table = job
        for group in groups:
            table = table[group]
        table[field] = value
    assert job_from_json(json.dumps(job)).key == row["key"]


def test_it_goes_on_to_what_it_would_have_given(old, recipe):
    """Its checkpoint is of another processor, whose sums are rounded in another order."""
    folder = run_of(old)
    assert main(["train", str(old / "recipe.json"), "--set", f"loop.steps={LONGER}"]) == 0
    history = read_history(folder.events_path)
    assert sorted(history.losses) == list(range(1, LONGER + 1))
    lora = folder.finished_lora(LONGER)
    assert lora is not None
    expect_near(load_file(lora), load_file(FIXTURE / "longer.safetensors"))


def test_what_is_trained_anew_is_what_it_gave(old, recipe):
    """To the bit, if the version's results are known for this processor; made longer, too."""
    (folder,) = (recipe.runs_path).iterdir()
    expected = load_file(next(folder.glob("*.safetensors")))
    shutil.rmtree(folder)
    found = trained(old, recipe, 4)
    assert folder.is_dir()
    expect_near(found, expected)
    known = FIXTURE / "processors" / processor()
    if known.is_dir():
        shutil.rmtree(recipe.work)  # the cache, too, was encoded on another processor
        expect_equal(trained(old, recipe, 4), load_file(known / "4.safetensors"))
        expect_equal(trained(old, recipe, LONGER), load_file(known / f"{LONGER}.safetensors"))


def trained(old, recipe, steps):
    """Tensors of the LoRA."""
    assert main(["train", str(old / "recipe.json"), "--set", f"loop.steps={steps}"]) == 0
    (path,) = (path for path in recipe.runs_path.iterdir() if path.is_dir())
    lora = RunFolder(path).finished_lora(steps)
    assert lora is not None
    return load_file(lora)


def expect_near(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def expect_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def processor() -> str:
    """Vendor, family and model, as Linux has them, which decide the order of a sum; with another PyTorch nothing is known."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    is_known = torch.__version__.split("+")[0] == MADE_WITH
    return "-".join(facts.get(name, "") for name in ("vendor_id", "cpu family", "model")) if is_known else "unknown"
