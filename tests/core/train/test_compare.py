"""Which checkpoints are compared, and which go together."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.generate.grid import video_grid
from wan_train.core.train.compare import (
    choose_steps,
    loras_of,
    pairs_of,
    proposals,
    read_prompts,
    read_strengths,
    run_names,
)
from wan_train.core.train.copies import copy_checkpoint, find_copies, run_of_copy
from wan_train.core.train.events import EventWriter
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def make(tmp_path, job):
    def make(name, stage, steps):
        folder = RunFolder(tmp_path / "runs" / name)
        folder.path.mkdir(parents=True)
        low, high = {"high": (0.9, 1.0), "low": (0.0, 0.9), "single": (0.0, 1.0)}[stage]
        folder.write_job(replace(job, stage=stage, timesteps=replace(job.timesteps, sigma_min=low, sigma_max=high)))
        for step in steps:
            folder.checkpoint_store.save(step, {"a": torch.zeros(1)}, {"step": step}, keep_last=99)
        return folder

    return make


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("all", [10, 20, 30, 40, 50]),
        ("", [10, 20, 30, 40, 50]),
        ("last 2", [40, 50]),
        ("last 9", [10, 20, 30, 40, 50]),
        ("every 2", [20, 40]),
        ("30, 10 30", [30, 10]),
    ],
)
def test_words_choose_checkpoints(make, words, steps):
    run = make("run", "single", range(10, 60, 10))
    assert choose_steps(words, run, list(loras_of(run))) == steps


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("35", "has no checkpoint of step 35: it keeps 10, 20"),
        ("every 3", "checkpoints is 'every 3', but run keeps only 2"),
        ("last", "checkpoints is 'last': write all"),
        ("last 1 2", "write all"),
        ("0", "write all"),
        ("the best", "write all"),
        ("best", "no held-out loss was measured"),
    ],
)
def test_other_words_are_a_sentence(make, words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        choose_steps(words, make("run", "single", (10, 20)), [10, 20])


def test_both_experts_are_paired_by_the_nearest_step(make):
    high, low = make("high", "high", (10, 20, 30)), make("low", "low", (8, 12, 25))
    pairs = pairs_of(high, low, "all")
    assert [(pair.high.step, pair.low.step) for pair in pairs if pair.high and pair.low] == [
        (10, 8),
        (20, 25),
        (30, 25),
    ]
    assert [pair.label for pair in pairs] == ["high 10, low 8", "high 20, low 25", "high 30, low 25"]
    alone = pairs_of(None, low, "last 1")
    assert (alone[0].high, alone[0].label) == (None, "step 25")


def test_the_best_is_proposed_with_the_score_of_each(make):
    high, low = make("one", "high", (10, 20)), make("two", "low", (10, 20))
    diary = EventWriter(low.events_path)
    diary.write("start", step=0)
    for step, loss in ((10, 1.0), (20, 4.0)):
        diary.write("validation", step=step, loss=loss, by_sample=[loss, loss + 0.1, loss - 0.1])
    said = proposals([high, None, low, make("three", "single", (10,))])
    assert len(said) == 2  # of one checkpoint alone there is nothing to say
    assert said[0].startswith("which checkpoint of one is best can't be told: no held-out loss was measured")
    scores = "scores out of 100: step 10: 100, step 20: 50; lowest held-out loss: step 10"
    assert (
        said[1] == f"best checkpoint of two by its score: step 10 ({scores}); the last one may be broken: compare them"
    )


def test_copies_of_checkpoints_that_a_run_has_removed_are_compared(make, tmp_path):
    run, loras = make("run", "single", (30,)), tmp_path / "loras"
    sources = {}
    for step in (10, 20, 30):
        sources[step] = tmp_path / f"{step}.safetensors"
        sources[step].write_bytes(f"LoRA {step}".encode())
        copy_checkpoint(run, sources[step], loras, f"cat_step{step}", step=step, keep=0)
    (loras / "mine").mkdir()
    (loras / "cat_step20.safetensors").rename(loras / "mine" / "best so far.safetensors")
    (loras / "cat_step10.safetensors").write_bytes(b"LoRA 11")  # another of equal length
    checkpoint = run.checkpoints()[0][1] / "adapter.safetensors"
    assert loras_of(run, [loras]) == {20: loras / "mine" / "best so far.safetensors", 30: checkpoint}
    assert [pair.label for pair in pairs_of(run, None, "20", [loras])] == ["step 20"]
    assert loras_of(run) == {30: checkpoint}
    assert run_of_copy(loras / "mine" / "best so far.safetensors", tmp_path / "runs") == run
    assert run_of_copy(loras / "cat_step10.safetensors", tmp_path / "runs") is None


def test_a_renamed_copy_stays_known_when_the_oldest_are_removed(make, tmp_path):
    run, loras = make("run", "single", (30,)), tmp_path / "loras"
    source = tmp_path / "one.safetensors"
    for step in (10, 20, 30, 40):
        source.write_bytes(f"LoRA {step}".encode())
        copy_checkpoint(run, source, loras, f"cat_step{step}", step=step, keep=2)
        if step == 10:
            (loras / "cat_step10.safetensors").rename(loras / "first.safetensors")
    assert sorted(path.name for path in loras.iterdir()) == [
        "cat_step30.safetensors",
        "cat_step40.safetensors",
        "first.safetensors",
    ]
    assert list(find_copies(run, [loras])) == [10, 30, 40]


def test_what_does_not_go_together_is_refused(make):
    high, low, single = make("high", "high", (1,)), make("low", "low", (1,)), make("single", "single", (1,))
    for runs, sentence in (
        ((low, None), "high_run is low, a run of the low noise expert"),
        ((None, high), "low_run is high, a run of the high noise expert"),
        ((single, low), "there is no low noise half"),
        ((None, None), "no run is chosen"),
        ((make("empty", "high", ()), None), "empty has no checkpoint yet"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            pairs_of(*runs, "all")
    assert set(run_names(high.path.parent)) == {"high", "low", "single"}


def test_strengths_and_prompts():
    assert read_strengths("0.8, 1 0.8,-2") == [0.8, 1.0, -2.0]
    for text in ("", "strong", "nan", "inf", "11", " ".join(map(str, range(40)))):
        with pytest.raises(ConfigError, match="strengths is"):
            read_strengths(text)
    assert read_prompts("one\n\n two \none") == ["one", "two"]
    with pytest.raises(ConfigError, match="prompts is empty"):
        read_prompts(" \n")


def test_the_grid_has_each_video_in_its_place():
    videos = [[torch.full((3, 48, 64, 3), 0.1 * (1 + column + 2 * row)) for column in range(2)] for row in range(2)]
    grid = video_grid(list(zip(["a", "b"], videos, strict=True)), ["x", "y"])
    strip = (grid.shape[1] - 2 * 48) // 3
    assert grid.shape == (3, 96 + 3 * strip, 128, 3)
    for row, top in enumerate((2 * strip, 48 + 3 * strip)):
        for column in range(2):
            assert torch.equal(grid[:, top : top + 48, 64 * column : 64 * column + 64], videos[row][column])
    assert not torch.equal(grid[:, :strip, :64], grid[:, :strip, 64:])  # their titles
    assert video_grid([("a", videos[0])], ["x", "y"], width=32).shape[2] == 64
