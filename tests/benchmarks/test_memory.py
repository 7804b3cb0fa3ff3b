"""What the memory benchmark makes of its options and its rows; the measuring needs a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from wan_train.benchmarks import cells as memory_cells
from wan_train.benchmarks import memory
from wan_train.benchmarks.cells import Cell, Conditions, run_cells
from wan_train.benchmarks.material import MODELS, write_checkpoint
from wan_train.benchmarks.memory import check_disk, in_groups, lowest_setting, measure_cells, read_options
from wan_train.benchmarks.memory_rows import add_row, compare, peers_table, table
from wan_train.core.plan import decision


def row(cap_gb, **fields):
    cell = {"model": "14b", "shape": "832x480x33", "precision": "fp8", "cap_gb": cap_gb, "cap_ram_gb": 0.0}
    return {**cell, "plan": "a plan", "peak_reserved_gb": 7.5, "ram_gb": 21.0, **fields}


def test_rows_are_compared_with_the_step_without_a_cap():
    rows = [
        row(8.0, ours_s=3.0),
        row(0.0, ours_s=2.5),
        row(6.0, plan=None, why="too small", oom=None),
        row(7.0, oom=True),
    ]
    compare(rows)
    assert [r["resident_s"] for r in rows] == [2.5] * 4
    lines = table(rows).splitlines()[2:]
    assert "| none | 2.50 | 1.00x |" in lines[0]
    assert "| 6 | does not fit |" in lines[1]
    assert lines[1].endswith("| too small |")
    assert "| 7 | out of memory |" in lines[2]
    assert "| 8 | 3.00 | 1.20x | 7.5 | 21.0 | a plan |" in lines[3]


def test_held_rows_say_so_and_are_rows_of_their_own():
    rows = [row(0.0, ours_s=2.5)]
    for seconds in (9.0, 8.0):
        add_row(rows, row(0.0, held_ram_gb=16.0, ours_s=seconds))
    assert [r["ours_s"] for r in rows] == [2.5, 8.0]
    add_row(rows, row(0.0, held_ram_gb=0.0, ours_s=2.0))  # the first, measured again
    compare(rows)
    assert [(r["ours_s"], r["resident_s"]) for r in rows] == [(8.0, 2.0), (2.0, 2.0)]
    assert "| none | 8.00 | 4.00x | 7.5 | 21.0 (held to 16) |" in table(rows)


def test_ranks_are_compared_with_their_own():
    rows = [row(0.0, ours_s=2.0), row(8.0, ours_s=3.0)]  # of rank 16, which rows of before do not say
    for seconds in (5.0, 4.0):
        add_row(rows, row(8.0, rank=64, ours_s=seconds))
    add_row(rows, row(8.0, rank=16, ours_s=2.5))
    compare(rows)
    assert [(r["ours_s"], r["resident_s"]) for r in rows] == [(2.0, 2.0), (4.0, None), (2.5, 2.0)]
    assert [line.split("|")[3].strip() for line in table(rows).splitlines()[2:]] == ["16", "16", "64"]


def test_a_row_says_why_there_is_no_time():
    killed = {"model": "14b", "shape": "832x480x33", "precision": "fp8", "cap_gb": 8.0, "cap_ram_gb": 0.0, "oom": None}
    assert "| 8 | failed |" in table([killed])  # before there was a plan
    assert "| 8 | out of main memory |" in table([{**killed, "plan": "a plan", "oom": "ram"}])


def test_a_cell_is_read():
    assert Cell.parse("832x480x33 fp8 8 24") == Cell("832x480x33", "fp8", 8.0, 24.0)
    arguments = ["--cells", "832x480x33 fp8 8", "--hold-ram", "16", "--rank", "64", "--out", "memory.json"]
    assert read_options(arguments).cells == [Cell("832x480x33", "fp8", 8.0, 0.0, 16.0, 64)]


def test_cells_of_a_precision_share_a_process():
    short, image = Cell("832x480x33", "fp8", 12.0), Cell("512x512x1", "fp8", 8.0)
    other, held = Cell("832x480x33", "bf16", 8.0), Cell("832x480x33", "fp8", 8.0, 0.0, 16.0)
    assert in_groups([short, image, other, short, held, held]) == [[short, image], [other], [short], [held], [held]]


def test_cells_are_planned_and_trained(tmp_path):
    """A toy on the CPU, whose memory nobody holds it to."""
    model, outs = tmp_path / "toy.safetensors", [str(tmp_path / f"{number}.json") for number in range(2)]
    write_checkpoint(model, MODELS["toy"], torch.float32)
    cells = [Cell("64x64x1", "fp32", 0.0), Cell("64x64x1", "fp32", 0.01)]
    run_cells(cells, outs, Conditions(model_name="toy", model=str(model), steps=3, compile="off"))
    fits, does_not = (json.loads(Path(out).read_text()) for out in outs)
    assert fits["ours_s"] > 0
    assert (fits["model"], fits["oom"], fits["memory"]["checkpointing"]) == ("toy", False, False)
    assert (does_not["plan"], does_not["oom"]) == (None, None)
    assert "does not fit" in does_not["why"]


def test_attention_is_auto_and_a_step_that_records_graphs_not_timed(monkeypatch, tmp_path):
    model, tasks = tmp_path / "toy.safetensors", []
    write_checkpoint(model, MODELS["toy"], torch.float32)

    def run(task):
        tasks.append(task)
        Path(task.out).write_text(json.dumps({"s": 1.0, "attention": "math"}))

    monkeypatch.setattr(memory_cells, "run_task", run)
    clips = ("64x64x1", "64x32x1", "64x64x1")
    outs = [str(tmp_path / f"{number}.json") for number in range(3)]
    conditions = Conditions(model_name="toy", model=str(model), steps=5, compile="off")
    run_cells([Cell(clip, "fp32", 0.0) for clip in clips], outs, conditions)
    assert [task.setting.memory.attention for task in tasks] == ["auto"] * 3
    monkeypatch.setattr(decision, "may_use_graphs", lambda *_: True)  # as on a GPU
    run_cells([Cell(clips[0], "fp32", 0.0, rank=4)], outs[:1], conditions)
    assert [(task.warmup, task.steps, task.rank) for task in tasks] == [(2, 3, 16)] * 3 + [(3, 3, 4)]


def test_a_process_that_is_killed_costs_one_cell(monkeypatch, tmp_path):
    """The row of that one says what was planned; those behind it get another process."""
    cells = [Cell("832x480x33", "fp8", cap) for cap in (24.0, 12.0, 8.0)]
    started, rows = [], []

    def run(_what, _function, cells, outs, _conditions, *, meanwhile, **_):
        started.append([cell.cap_gb for cell in cells])
        for cell, out in zip(cells, outs, strict=True):
            killed = cell.cap_gb == 12.0
            Path(out).write_text(json.dumps({"plan": "a plan", **({} if killed else {"ours_s": cell.cap_gb})}))
            meanwhile()
            if killed:
                assert [row["cap_gb"] for row in rows] == [24.0]  # told while the next one runs
                return

    monkeypatch.setattr(memory.speed, "apart", run)
    options = read_options(["--out", "memory.json"])
    measure_cells(options, cells, tmp_path, tmp_path / "model.safetensors", rows.append)
    assert started == [[24.0, 12.0, 8.0], [8.0]]
    assert [(row["cap_gb"], row.get("ours_s"), row["plan"]) for row in rows] == [
        (24.0, 24.0, "a plan"),
        (12.0, None, "a plan"),
        (8.0, 8.0, "a plan"),
    ]
    monkeypatch.setattr(memory.speed, "apart", lambda *_, **__: None)  # it did not even begin
    measure_cells(options, cells[:1], tmp_path, tmp_path / "model.safetensors", rows.append)
    assert (rows[3]["cap_gb"], rows[3]["oom"]) == (24.0, None)
    assert "plan" not in rows[3]


@pytest.mark.skipif(sys.platform != "linux", reason="groups are Linux's")
def test_the_folder_must_be_on_a_disk(monkeypatch, tmp_path):
    mount = memory.disk.Mount("/", Path("/"), "ext4", ())
    in_memory = memory.disk.Mount("/", tmp_path, "tmpfs", ())
    monkeypatch.setattr(memory.disk, "mounted", lambda: [mount, in_memory])
    with pytest.raises(SystemExit, match="--work"):
        check_disk(tmp_path)
    check_disk(tmp_path.parent)


def test_the_lowest_setting_of_the_peer():
    setting = lowest_setting("14b", "bf16")
    assert "--blocks_to_swap 39 " in setting
    assert "--fp8_base --fp8_scaled " in setting
    assert "--fp8_scaled" not in lowest_setting("14b", "fp8")  # which it refuses


def test_peers_are_listed():
    peer = {
        "model": "14b",
        "shape": "832x480x33",
        "peer": "musubi-tuner",
        "setting": "--fp8_base",
        "s": 5.0,
        "ram_gb": 30.0,
    }
    lines = peers_table([{**peer, "s": 6.0}, {**peer, "peak_reserved_gb": 17.2}]).splitlines()[2:]
    assert lines[0] == "| 832x480x33 | musubi-tuner | 5.00 | 17.2 | 30.0 | --fp8_base |"
    assert lines[1] == "| 832x480x33 | musubi-tuner | 6.00 |  | 30.0 | --fp8_base |"
