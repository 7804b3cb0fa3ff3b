"""Frames, sizes and counts beside those that other trainers' own code gave for the same clips (peers.json, run_peers.py)."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
from wan_train.core.data.buckets import bucket_for
from wan_train.core.data.sampling import select_frames
from wan_train.tests.core.importers.given import AITOOLKIT, SIMPLETUNER, SIMPLETUNER_DATASETS, import_files

PEERS = json.loads(Path(__file__).with_name("peers.json").read_text())
CLIPS = {"long": 50, "middle": 33, "short": 20}


def windows(options):
    """The frames of each sample, by clip; clips without one are left out."""
    found = {}
    for name, count in CLIPS.items():
        times = [i * 62_500 for i in range(count)]
        if made := select_frames(times, count * 62_500, options).windows:
            found[name] = [list(window) for window in made]
    return found


def musubi(lines, resolution="[512, 512]"):
    text = f"[[datasets]]\nvideo_directory = '/clips'\nresolution = {resolution}\nenable_bucket = true\n{lines}\n"
    (options,) = import_files({"dataset.toml": text}).recipe.dataset
    return options


def aitoolkit(frames=33, *, shrink=True):
    text = AITOOLKIT.replace("num_frames: 33\n          shrink_video_to_frames: true", f"num_frames: {frames}\n          "
                             f"shrink_video_to_frames: {str(shrink).lower()}").replace("[ 512, 768 ]", "512")  # fmt: skip
    (options,) = import_files({"job.yaml": text}).recipe.dataset
    return options


def simpletuner(frames=73):
    data = json.loads(SIMPLETUNER_DATASETS)
    data[0] |= {"resolution": 512, "video": {"num_frames": frames}}
    (options,) = import_files({"config.json": SIMPLETUNER, "multidatabackend.json": json.dumps(data)}).recipe.dataset
    return options


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("head 17", "target_frames = [17]"),
        ("head 25", "target_frames = [25]"),
        ("chunk 17", "target_frames = [17]\nframe_extraction = 'chunk'"),
        ("slide 17 by 8", "target_frames = [17]\nframe_extraction = 'slide'\nframe_stride = 8"),
        ("uniform 17 x 3", "target_frames = [17]\nframe_extraction = 'uniform'\nframe_sample = 3"),
        ("full", "target_frames = [17]\nframe_extraction = 'full'\nmax_frames = 129"),
    ],
)
def test_musubis_windows(case, lines):
    ours, theirs = windows(musubi(lines)), PEERS["musubi"]["frames"][case]
    if not case.startswith("uniform"):
        assert ours == theirs
        return
    # Starts between the first and the last window are cut to a whole frame there, and rounded here.
    assert [[window[0] for window in of] for of in theirs.values()] == [[0, 16, 33], [0, 8, 16], [0, 1, 3]]
    assert [[window[0] for window in of] for of in ours.values()] == [[0, 17, 33], [0, 8, 16], [0, 2, 3]]


@pytest.mark.parametrize("count", [17, 25])
def test_aitoolkits_even_frames(count):
    """A clip with fewer frames is stretched there, by repeated frames; here it is shortened. Ties go to the earlier frame."""
    theirs = PEERS["aitoolkit"]["frames"][f"even {count}"]
    ours = windows(aitoolkit(count))
    for name, frames in CLIPS.items():
        if frames >= count:
            pairs = list(zip(ours[name][0], theirs[name][0], strict=True))
            assert all(
                a == b or (a + 1 == b and i * (frames - 1) * 2 % (count - 1) == 0) for i, (a, b) in enumerate(pairs)
            )
            assert len([a for a, b in pairs if a != b]) <= 1
        else:
            assert len(set(theirs[name][0])) < count
            assert ours[name] == [list(range(17))]


def test_aitoolkits_random_start_is_a_window_of_the_clip():
    theirs = PEERS["aitoolkit"]["frames"]["random 17"]
    ours = windows(aitoolkit(17, shrink=False))
    for name in CLIPS:
        start = theirs[name][0][0]
        assert theirs[name][0] == list(range(start, start + 17))
        assert ours[name][0] == list(range(17))


def test_simpletuners_numbers_of_frames():
    for given, taken in PEERS["simpletuner"]["frames"].items():
        assert simpletuner(int(given)).num_frames == taken


def sizes(options, rows):
    """{file: (theirs, ours)} where they are not the same."""
    made = {tuple(size): (tuple(theirs), bucket_for(*size, options)) for size, theirs in rows}
    return {size: pair for size, pair in made.items() if pair[0] != pair[1]}


def fast(options, fps=30):
    """The frames of the samples of a clip of 60 frames."""
    return [
        list(window) for window in select_frames([round(i * 1e6 / fps) for i in range(60)], 2_000_000, options).windows
    ]


def test_frames_as_they_come_need_the_rate_of_the_clip():
    """musubi-tuner without source_fps, and SimpleTuner, look at no rate; here a clip keeps its speed unless fps is its own."""
    first = PEERS["musubi"]["rates"]["head 17"]["fast"]
    assert first == PEERS["simpletuner"]["rates"]["17"]["fast"] == [list(range(17))]
    for options in (musubi("target_frames = [17]"), simpletuner(17)):
        assert fast(options) == [[0, 2, 4, 6, 7, 9, 11, 13, 15, 17, 19, 21, 22, 24, 26, 28, 30]]
        assert fast(dataclasses.replace(options, fps=30.0)) == first


def test_musubis_rate_is_kept_to_the_frame_beside_it():
    (theirs,) = PEERS["musubi"]["rates"]["head 17 source_fps 30"]["fast"]
    (ours,) = fast(musubi("target_frames = [17]\nsource_fps = 30.0"))
    assert {b - a for a, b in zip(ours, theirs, strict=True)} == {0, 1}


def test_aitoolkits_rate_is_a_whole_part_of_the_clips():
    (theirs,) = PEERS["aitoolkit"]["rates"]["random 17 at 16 fps"]["fast"]
    assert {b - a for a, b in pairwise(theirs)} == {2}  # 15 fps
    ours = fast(aitoolkit(17, shrink=False))[0]
    assert {b - a for a, b in pairwise(ours)} == {1, 2}
    (even,) = PEERS["aitoolkit"]["rates"]["even 17"]["fast"]
    assert all(0 <= b - a <= 1 for a, b in zip(fast(aitoolkit(17))[0], even, strict=True))


@pytest.mark.parametrize("upscale", [True, False])
def test_musubis_sizes(upscale):
    options = musubi(f"target_frames = [17]\nbucket_no_upscale = {str(not upscale).lower()}")
    assert sizes(options, PEERS["musubi"]["sizes"][f"512 upscale {upscale}"]) == {}


def test_aitoolkits_sizes():
    """A file's own shape there, at the multiples of 16 around it; the nearest of a list of shapes here."""
    assert sizes(aitoolkit(), PEERS["aitoolkit"]["sizes"]["512"]) == {
        (800, 600): ((576, 448), (592, 432)),
        (400, 300): ((400, 304), (400, 288)),
        (1000, 300): ((944, 272), (960, 272)),
    }


def test_simpletuners_sizes():
    """Each side rounded to 16 there, so that the area can be larger than that of the square; never larger here."""
    different = sizes(simpletuner(), PEERS["simpletuner"]["sizes"]["512"])
    assert different == {
        (1920, 1080): ((688, 384), (672, 384)),
        (1080, 1920): ((384, 688), (384, 672)),
        (800, 600): ((592, 448), (592, 432)),
        (640, 360): ((688, 384), (672, 384)),
        (400, 300): ((592, 448), (592, 432)),
        (1000, 300): ((928, 288), (960, 272)),
    }
    assert all(a * b > 512 * 512 >= c * d for (a, b), (c, d) in different.values())


def test_the_differences_are_told():
    data = json.loads(SIMPLETUNER_DATASETS)
    tuner = import_files({"config.json": SIMPLETUNER, "multidatabackend.json": json.dumps(data)})
    assert any("rounds both sides of a size" in note for note in tuner.notes)
    assert any("frames of a clip as they come" in note and "set fps" in note for note in tuner.notes)
    clips = "[[datasets]]\nvideo_directory = '/clips'\ntarget_frames = [17]\n"
    as_they_come = [import_files({"dataset.toml": text}).notes for text in (clips, f"{clips}source_fps = 30.0\n")]
    assert [any("as they come" in note for note in notes) for notes in as_they_come] == [True, False]
    random = import_files(
        {"job.yaml": AITOOLKIT.replace("shrink_video_to_frames: true", "shrink_video_to_frames: false")}
    )
    assert any("15 a second of 30" in note for note in random.notes)
    toolkit = import_files({"job.yaml": AITOOLKIT})
    assert not any("15 a second" in note for note in toolkit.notes)
    assert any("multiples of 16 around" in note for note in toolkit.notes)
    assert any("repeats frames" in note for note in toolkit.notes)
