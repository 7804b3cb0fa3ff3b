import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from wan_train.core.errors import ConfigError
from wan_train.tools.nano import few_steps, few_steps_adapter
from wan_train.tools.nano.concepts import CONCEPTS
from wan_train.tools.nano.distil import FewStepFiles
from wan_train.tools.nano.failure import error_line
from wan_train.tools.nano.family import STAGES, Files
from wan_train.tools.nano.lessons import train_here
from wan_train.tools.nano.workshop import Workshop


@pytest.fixture(scope="module")
def two_pairs(files, tmp_path_factory):
    """The small family, and as its few-step pair the two experts the other way round."""
    root = tmp_path_factory.mktemp("few") / "family"
    shutil.copytree(files.root, root)
    for stage, other in zip(STAGES, reversed(STAGES), strict=True):
        shutil.copy(Files(root).dit(other), FewStepFiles(root).dit(stage))
    return root


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(few_steps_adapter.make_adapters, "__defaults__", (2, 2, train_here))


def arguments(root, out, work):
    told = ["--family", str(root), "--out", str(out), "--work", str(work), "--devices", "cpu"]
    return [*told, "--concepts", "dive", "--seeds", "1", "--steps", "2", "--prompts", "1"]


@pytest.mark.grid(8, "benchmarks by their commands")
def test_every_way_has_its_rows_and_none_is_made_twice(two_pairs, tmp_path, quick, capsys):
    out = tmp_path / "rows.csv"
    few_steps.main(arguments(two_pairs, out, tmp_path / "work"))
    rows = few_steps.read_rows(out)
    asked = [(row["way"], row["model"], row["strength"]) for row in rows]
    assert asked == [
        ("base", "base", "1"),
        ("base", "few-step", "1"),
        ("base", "few-step", "1.5"),
        *((way, model, "1") for way in few_steps.WAYS[1:] for model in ("base", "few-step")),
    ]
    jobs = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "work" / "runs").glob("dive_*/job.json")]
    assert len(jobs) == 2 * len(few_steps.WAYS)
    merged = [
        (job["stage"], Path(job["adapter"]["merge_into_base"]).parent.name.split("_")[2])
        for job in jobs
        if job["adapter"]["merge_into_base"]
    ]
    assert sorted(merged) == [("high", "high"), ("low", "low")]
    assert sorted(job["loss"]["contrastive_guidance"] for job in jobs) == [0.0] * 6 + [2.5] * 2
    before = out.read_bytes()
    few_steps.main(arguments(two_pairs, out, tmp_path / "work"))
    assert out.read_bytes() == before
    assert capsys.readouterr().out.count("| contrastive | few-step |") == 2


@pytest.mark.grid(8, "benchmarks by their commands")
def test_what_is_done_is_taken_up_and_only_the_rest_has_processes(two_pairs, tmp_path, quick, capsys):
    out, work = tmp_path / "rows.csv", tmp_path / "work"
    few_steps.main(arguments(two_pairs, out, work))
    first = few_steps.read_rows(out)
    of_others = {**first[0], "concept": "star"}
    stale = {**first[-1], "learnt": "9", "key": "of other settings"}
    few_steps.put_rows(out, [of_others])
    few_steps.put_rows(out, [{**stale, "seed": "2"}])
    capsys.readouterr()
    told = arguments(two_pairs, out, work)
    told[told.index("--seeds") + 1 : told.index("--steps")] = ["1", "2"]
    few_steps.main([*told, "--processes", "2"])
    assert "4 lessons are to be given, in 1 processes." in capsys.readouterr().out
    assert [path.name for path in work.glob("log-*")] == ["log-dive-2.txt"]
    rows = few_steps.read_rows(out)
    assert rows[: len(first) + 1] == [*first, of_others]
    assert {row["seed"] for row in rows[len(first) + 1 :]} == {"2"}
    assert len(rows) == 2 * len(first) + 1
    assert all(row["learnt"] != "9" for row in rows)
    # rows of a process that was broken off before they were taken
    few_steps.put_rows(out, [stale])
    few_steps.put_rows(work / "rows-dive-1.csv", first)
    few_steps.main([*told, "--processes", "2"])
    assert "0 lessons are to be given, in 0 processes." in capsys.readouterr().out
    assert sorted(map(str, few_steps.read_rows(out))) == sorted(map(str, rows))


def test_lessons_that_fail_say_why_in_their_line(two_pairs, tmp_path, capsys):
    root, work = tmp_path / "family", tmp_path / "work"
    shutil.copytree(two_pairs, root)
    Files(root).vae.write_bytes(b"no model")
    adapter = str(Files(root).text_encoder)  # any file: none of it is read before the models are
    told = arguments(root, tmp_path / "rows.csv", work)
    work.mkdir()
    few_steps.main([*told, "--adapters", adapter, adapter, "--processes", "1"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dive, seed 1")]
    log = work / "log-dive-1.txt"
    assert line == f"dive, seed 1: failed: {error_line(log.read_text('utf-8'))} (all of it: {log})"
    assert "SafetensorError: " in line


def test_the_rows_that_are_here_are_those_of_todays_settings_and_files(tmp_path, monkeypatch):
    """Where this fails, lessons would be given again: either something that decides them changed, or their digest."""
    base = Workshop(files=Files(), folder=tmp_path)
    adapters = {stage: tmp_path / stage / "adapter.safetensors" for stage in STAGES}
    bench = few_steps.Bench(
        base=base, few=replace(base, files=FewStepFiles(Files().root)), adapters=adapters, num_prompts=64, steps=250
    )
    rows = few_steps.read_rows(Files().root / "curves" / "few_steps.csv")
    made = {stage: ["training_adapter", stage, few_steps_adapter.STEPS, few_steps_adapter.CLIPS] for stage in STAGES}
    monkeypatch.setattr(few_steps, "_maker_of", lambda path: made[path.parent.name])
    missing = bench.missing([CONCEPTS[name] for name in ("dive", "barred", "star")], [1, 2, 3], rows)
    there = {(row["concept"], row["seed"], row["way"]) for row in rows}
    again = {(concept.name, str(seed), way) for concept, seed, way in missing} & there
    assert {lesson[:2] for lesson in again} <= {("star", "2"), ("star", "3")}, (
        "made by an older version: give these again"
    )


def test_motion_is_the_change_from_frame_to_frame():
    still = np.full((1, 3, 4, 4, 3), 9, dtype=np.uint8)
    moving = still.copy()
    moving[:, 1] += 6
    assert few_steps.motion(still) == 0
    assert few_steps.motion(moving) == 6


def test_the_table_has_means_and_the_spread():
    common = {"concept": "dive", "way": "base", "model": "few-step", "strength": "1", "motion": "1"}
    rows = [{**common, "learnt": "0.5", "kept": "0.9"}, {**common, "learnt": "0.7", "kept": "0.7"}]
    assert few_steps.table(rows).splitlines()[-1] == "| base | few-step | 1 | 60% (50 to 70) | 80% | 100% |"


def test_the_table_tells_the_ways_apart_lesson_by_lesson():
    def row(way, model, seed, learnt, kept):
        return {"concept": "dive", "seed": seed, "way": way, "model": model, "strength": "1", "motion": "1"} | {
            "learnt": learnt, "kept": kept,
        }  # fmt: skip

    rows = [row("base", "few-step", "1", "0.5", "0.9"), row("base", "few-step", "2", "0.7", "0.8")]
    rows += [row("contrastive", "few-step", "1", "0.6", "0.5"), row("contrastive", "few-step", "2", "0.6", "0.4")]
    rows += [row("contrastive", "base", "1", "0.0", "0.0")]
    head, _, line = few_steps.table(rows).splitlines()[-3:]
    assert head.startswith("| on the few-step pair, beside base at strength 1 |")
    assert line == "| contrastive | 1 | +0 ± 10 | -40 ± 0 ▼ | +0 ± 0 | 2 |"


def test_a_table_with_other_columns_is_left_alone(tmp_path):
    (tmp_path / "rows.csv").write_text("concept,seed\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="other columns"):
        few_steps.read_rows(tmp_path / "rows.csv")
