from fractions import Fraction

import av
import numpy as np
import pytest
from av import stream as av_stream
from wan_train.core.data import clips
from wan_train.core.data.clip_pixels import frame_to_rgb
from wan_train.core.data.clips import probe_clip, read_clip
from wan_train.core.data.media import BadMediaError


def read_images(path, indices, num_frames):
    return [(index, frame_to_rgb(frame)) for index, frame in read_clip(path, indices, num_frames)]


def levels(path, indices, num_frames):
    """(index, mean grey) of the frames read."""
    return [(index, float(np.asarray(image).mean())) for index, image in read_images(path, indices, num_frames)]


def check_levels(make, found, indices, tolerance=2):
    assert [index for index, _ in found] == list(indices)
    for index, grey in found:
        assert abs(grey - make.level(index)) <= tolerance, index


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv420p"),
        ("a.m4v", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("b.mkv", "libx264", "yuv420p10le"),
        ("c.mkv", "ffv1", "bgr0"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("b.avi", "libx264", "yuv420p"),
    ],
)
def test_the_true_count_the_times_and_every_frame(tmp_path, make, name, codec, pix_fmt):
    path = make.clip(tmp_path / name, 25, codec=codec, pix_fmt=pix_fmt)
    found = probe_clip(path)
    times, end = found.times_us, found.end_us
    assert (*found.size, len(times)) == (64, 48, 25)
    assert np.abs(np.diff(times) - 62_500).max() <= 1001  # containers round to milliseconds
    assert end == pytest.approx(25 / 16 * 1e6, abs=1500)
    check_levels(make, levels(path, range(25), 25), range(25), 4 if codec in ("mpeg4", "libvpx-vp9") else 2)


@pytest.mark.parametrize("open_gop", [0, 1])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_b_frames_come_in_display_order(tmp_path, make, name, open_gop):
    params = f"qp=2:bframes=3:b-adapt=0:scenecut=0:open-gop={open_gop}"
    path = make.clip(tmp_path / name, 30, gop=7, options={"x264-params": params})
    with av.open(str(path)) as container:
        pts = [packet.pts or 0 for packet in container.demux(video=0) if packet.size]
    assert pts != sorted(pts)  # the file does have B-frames
    assert len(probe_clip(path).times_us) == 30
    for first in range(30):
        wanted = sorted({first, min(first + 3, 29), 29})
        check_levels(make, levels(path, wanted, 30), wanted)


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path, make):
    whole = make.clip(tmp_path / "whole.mp4", 30, gop=15)
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = (packet.pts or 0) - 5 * 1024, (packet.dts or 0) - 5 * 1024
                packet.stream = stream
                target.mux(packet)
    with av.open(str(trimmed)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 5
    times = probe_clip(trimmed).times_us
    assert len(times) == 25
    for wanted in ([0, 1, 24], [12, 13], [9, 10, 11]):
        found = levels(trimmed, wanted, 25)
        assert [index for index, _ in found] == wanted
        assert max(abs(grey - make.level(index + 5)) for index, grey in found) <= 2


def test_a_window_deep_in_the_clip_needs_only_its_own_group_of_frames(tmp_path, make, monkeypatch):
    path = make.clip(tmp_path / "a.mp4", 50, gop=10)
    real, decoded = clips.open_clip, []

    class Counting:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            self._container.__enter__()
            return self

        def __exit__(self, *args):
            return self._container.__exit__(*args)

        def decode(self, stream):
            for frame in self._container.decode(stream):
                decoded.append(frame.pts)
                yield frame

    monkeypatch.setattr(clips, "open_clip", lambda path: Counting(real(path)))
    check_levels(make, levels(path, [43, 45], 50), [43, 45])
    assert len(decoded) == 6  # 40 to 45


def test_a_variable_rate_keeps_its_times(tmp_path, make):
    pts = [0, 40, 80, 500, 520, 900]
    for name in ("a.mkv", "a.mp4"):
        path = make.clip(tmp_path / name, 6, pts_ms=pts, options={"qp": "0", "bf": "0"})
        assert probe_clip(path).times_us == tuple(p * 1000 for p in pts)
        check_levels(make, levels(path, range(6), 6), range(6))


def test_a_wrong_last_duration_does_not_stretch_the_clip(tmp_path, make):
    found = probe_clip(make.clip(tmp_path / "a.mkv", 3, pts_ms=[0, 60, 120], rate=1))
    assert found.end_us - found.times_us[-1] <= 60_000


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_metadata_is_applied(tmp_path, make, rotation):
    upright = np.full((48, 64, 3), 30, np.uint8)
    upright[:16, :16] = 230  # bright at the top left as displayed
    stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
    size = (stored.shape[1], stored.shape[0])
    path = make.clip(tmp_path / "a.mov", 3, size=size, picture=stored, rotation=rotation)
    assert probe_clip(path).size == (64, 48)
    ((_, image),) = read_images(path, [1], 3)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= 3


def test_pixels_that_are_not_square_give_the_displayed_size(tmp_path, make):
    path = make.clip(tmp_path / "a.mp4", 3, aspect=Fraction(3, 2))
    assert probe_clip(path).size == (96, 48)


@pytest.mark.parametrize("size", [(66, 50), (65, 49)])
def test_odd_sizes(tmp_path, make, size):
    pix_fmt = "yuv444p" if size[0] % 2 else "yuv420p"
    path = make.clip(tmp_path / "a.mp4", 4, size=size, pix_fmt=pix_fmt)
    assert probe_clip(path).size == size
    ((_, image),) = read_images(path, [2], 4)
    assert image.size == size
    assert abs(np.asarray(image).mean() - make.level(2)) <= 2


@pytest.mark.parametrize("colorspace", [1, 5])
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv444p10le"])
def test_tagged_matrix_and_range_give_the_true_colours(tmp_path, make, colorspace, color_range, pix_fmt):
    picture = np.full((48, 64, 3), (200, 60, 30), np.uint8)
    path = make.clip(
        tmp_path / "a.mp4", 2, picture=picture, colorspace=colorspace, color_range=color_range, pix_fmt=pix_fmt
    )
    ((_, image),) = read_images(path, [0], 2)
    assert np.abs(np.asarray(image).astype(int) - picture).max() <= 4


def test_untagged_clips_are_bt601_when_small_and_bt709_when_large(tmp_path, make):
    for size, matrix in (((64, 48), 5), ((1280, 32), 1)):
        picture = np.full((size[1], size[0], 3), (200, 60, 30), np.uint8)
        tagged = make.clip(tmp_path / "a.mkv", 1, size=size, picture=picture, colorspace=matrix, pix_fmt="yuv444p")
        # The same samples with the tag removed: ffv1 keeps it only in the container.
        with av.open(str(tagged)) as container:
            planes = next(container.decode(video=0)).to_ndarray()
        untagged = tmp_path / "b.mkv"
        with av.open(str(untagged), "w") as container:
            stream = container.add_stream("ffv1", rate=16)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
            container.mux(stream.encode())
        with av.open(str(untagged)) as container:
            assert next(container.decode(video=0)).colorspace == 2  # unspecified
        ((_, image),) = read_images(untagged, [0], 1)
        assert np.abs(np.asarray(image).astype(int) - (200, 60, 30)).max() <= 4


def noisy_clip(path, **kwargs):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", **kwargs) as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 10
        for _ in range(30):
            pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_clip_cut_off_behind_its_index_is_bad(tmp_path, make):
    path = noisy_clip(tmp_path / "a.mp4", options={"movflags": "faststart"})
    assert len(probe_clip(path).times_us) == 30
    with pytest.raises(BadMediaError, match=r"the file breaks off after \d+ frames"):
        probe_clip(make.cut(path, 0.7))


def test_a_clip_without_its_index_is_bad(tmp_path, make):
    path = noisy_clip(tmp_path / "a.mp4")
    with pytest.raises(BadMediaError, match=r"cannot be decoded|no video stream"):
        probe_clip(make.cut(path, 0.7))


def test_a_damaged_tail_is_found(tmp_path):
    path = noisy_clip(tmp_path / "a.mp4", options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    tail = len(data) * 9 // 10
    data[tail:] = bytes(len(data) - tail)
    path.write_bytes(data)
    with pytest.raises(BadMediaError, match=r"decoded|damaged|breaks off"):
        probe_clip(path)


def test_fewer_frames_than_probed_is_told(tmp_path, make):
    path = make.clip(tmp_path / "a.mp4", 10)
    with pytest.raises(BadMediaError, match="it gave 1 of 2 wanted frames"):
        levels(path, [8, 12], 14)


def test_sound_without_pictures_is_bad(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadMediaError, match="it has no video stream"):
        probe_clip(path)


def test_a_cover_is_no_clip(tmp_path, make):
    cover = make.image(tmp_path / "cover.png").read_bytes()
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        picture = container.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "rgb24"
        picture.disposition = av_stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
        container.mux(packet)
    with pytest.raises(BadMediaError, match="it has no video stream but the picture of a cover"):
        probe_clip(path)


@pytest.mark.parametrize(
    "text",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile 'other.mp4'\n",
    ],
)
def test_a_list_of_other_files_is_not_followed(tmp_path, make, text):
    make.clip(tmp_path / "other.mp4")
    path = tmp_path / "a.mp4"
    path.write_bytes(text)
    with pytest.raises(BadMediaError, match="the clip cannot be decoded"):
        probe_clip(path)
