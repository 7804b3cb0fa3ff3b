"""In and out points: sampling sees that part of a clip alone, and a file that says nonsense is told."""

import json
from pathlib import Path

import pytest
from wan_train.core.data.decode import read_frames
from wan_train.core.data.media import BadMediaError
from wan_train.core.data.points import POINTS_SUFFIX, Points, points_path, read_points, used_part, write_points
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import DatasetError
from wan_train.core.settings.dataset import DatasetOptions


@pytest.fixture
def clip(folder, make) -> Path:
    (folder / "a.txt").write_text("a caption")
    return make.clip(folder / "a.mp4", 20)


def scan(folder, **options):
    return scan_folder(folder, DatasetOptions(**{"width": 64, "height": 48, "num_frames": 5, **options}))


def test_they_are_read_as_written(clip):
    write_points(clip, Points(in_frame=3, out_frame=17))
    assert points_path(clip).name == "a.mp4.inout.json"
    assert read_points(points_path(clip)) == Points(in_frame=3, out_frame=17)
    write_points(clip, None)
    assert not points_path(clip).exists()
    write_points(clip, None)  # nothing to remove


def test_windows_lie_inside(folder, clip, make):
    write_points(clip, Points(in_frame=3, out_frame=14))
    dataset = scan(folder, frame_sampling="chunk")
    assert [s.frame_indices for s in dataset.samples] == [(3, 4, 5, 6, 7), (8, 9, 10, 11, 12)]
    assert str(dataset.notes[0]) == "a.mp4: note: frames 3 to 13 of 20 are used, by its in and out points"
    assert len(dataset.notes) == 2  # that, and the frame at the end that no window has
    levels = read_frames(dataset.samples[0]).float().mean((1, 2, 3))
    assert levels.tolist() == pytest.approx([make.level(i) for i in range(3, 8)], abs=1.5)


def test_another_rate_counts_from_the_in_point(folder, clip):
    write_points(clip, Points(in_frame=5, out_frame=20))
    (sample,) = scan(folder, fps=8.0).samples
    assert sample.frame_indices == (5, 7, 9, 11, 13)


def test_without_points_nothing_changes(folder, clip):
    before = scan(folder)
    write_points(clip, Points(in_frame=0, out_frame=20))
    assert scan(folder).digest == before.digest


def test_a_part_that_is_too_short_is_as_a_short_clip(folder, clip):
    write_points(clip, Points(in_frame=18, out_frame=20))
    (sample,) = scan(folder).samples
    assert sample.frame_indices == (18,)
    with pytest.raises(DatasetError, match="too short"):
        scan(folder, short_clips="refuse")


@pytest.mark.parametrize("points", [(0, 21), (5, 5), (-1, 4), (8, 3)])
def test_points_outside_the_clip_are_told(folder, clip, make, points):
    make.image(folder / "b.png")
    (folder / "b.txt").write_text("b")
    points_path(clip).write_text(json.dumps({"in_frame": points[0], "out_frame": points[1]}))
    dataset = scan(folder)
    assert [s.file.name for s in dataset.samples] == ["b.png"]
    assert "0 <= in_frame < out_frame <= 20" in str(dataset.notes[0])
    with pytest.raises(DatasetError, match=r"a\.mp4 cannot be used: its in and out points"):
        scan(folder, bad_files="refuse")


@pytest.mark.parametrize("text", ["", "[]", '{"in_frame": 1}', '{"in_frame": 1, "out_frame": 2.5}',
                                  '{"in_frame": true, "out_frame": 2}', "{" * 5000])  # fmt: skip
def test_a_file_that_is_no_points_is_told(clip, text):
    path = points_path(clip)
    path.write_text(text)
    with pytest.raises(BadMediaError, match="correct or remove it"):
        read_points(path)


def test_points_of_no_file_are_noted(folder, clip):
    (folder / f"gone.mp4{POINTS_SUFFIX}").write_text("{}")
    notes = [str(note) for note in scan(folder).notes]
    assert any(note.startswith("gone.mp4.inout.json: note: ignored") for note in notes)


def test_the_last_used_frame_ends_where_the_next_begins():
    times = (0, 100, 250, 300)
    assert used_part(times, 400, Points(in_frame=1, out_frame=3)) == ((0, 150), 200, 1)
    assert used_part(times, 400, Points(in_frame=2, out_frame=4)) == ((0, 50), 150, 2)
