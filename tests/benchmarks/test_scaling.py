"""What is compared with what, where several GPUs are measured beside one, ours and a peer's."""

import argparse
import json
from pathlib import Path

import pytest
from wan_train.benchmarks.scaling import Row, add_row, compare, find, peers_of

ROW = Row.parse("bf16 832x480x33 data steps=6")


def found(seconds: float, gpus: int, **more) -> dict:
    way = "data" if gpus > 1 else "one"
    head = {"model": "14b", "weights": "bf16", "shape": "832x480x33", "way": way, "gpus": gpus, "cap_gb": 0.0}
    return {**head, "s_step": seconds, "samples_s": gpus / seconds, **more}


def test_a_row_of_no_known_form_ends_the_command():
    with pytest.raises(SystemExit, match="'int4 832x480x33 data' is no row"):
        Row.parse("int4 832x480x33 data")


def test_a_peer_is_compared_with_itself_and_takes_the_place_of_none_of_ours(tmp_path):
    report = {"rows": [found(2.0, 1), found(2.0, 2)]}
    for row in (found(4.0, 1, peer="diffsynth"), found(5.0, 2, peer="diffsynth"), found(5.0, 1, peer="diffsynth")):
        add_row(report, row, tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row.get("peer"), row["gpus"]) for row in rows] == [
        *((None, 1), (None, 2)),
        *(("diffsynth", 2), ("diffsynth", 1)),
    ]
    for peer, seconds in ((None, 2.0), ("diffsynth", 5.0)):
        one = find(report, ROW, "14b", peer)
        assert one is not None
        assert one["s_step"] == seconds
    two = found(6.25, 2, peer="diffsynth")
    compare(two, find(report, ROW, "14b", "diffsynth"))
    assert (two["times"], two["efficiency"]) == (1.6, 0.8)


def test_the_peer_is_measured_on_what_it_can_do():
    options = argparse.Namespace(diffsynth=Path("checkout"), no_ours=False)
    assert peers_of(ROW, options) == [None, "diffsynth"]
    assert peers_of(Row.parse("fp8 832x480x33 data"), options) == [None]
    assert peers_of(Row.parse("bf16 832x480x81 context"), options) == [None]
    assert peers_of(ROW, argparse.Namespace(diffsynth=Path("checkout"), no_ours=True)) == ["diffsynth"]
    assert peers_of(ROW, argparse.Namespace(diffsynth=None, no_ours=False)) == [None]
