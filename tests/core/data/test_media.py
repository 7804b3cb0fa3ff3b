import struct

import pytest
from wan_train.core.data.media import missing_bytes


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")],
)
def test_cut_clips_lack_bytes_and_whole_ones_do_not(tmp_path, make, name, codec):
    path = make.clip(tmp_path / name, 8, codec=codec)
    assert missing_bytes(path) == 0
    size = path.stat().st_size
    if path.suffix in (".mkv", ".webm", ".avi"):
        path.write_bytes(path.read_bytes()[:-7])
        assert missing_bytes(path) == 7
    make.cut(path, 0.6)
    assert 0 < missing_bytes(path) <= size


def test_gif_webp_and_avif(tmp_path, make):
    for name in ("a.gif", "a.webp", "a.avif"):
        path = make.animation(tmp_path / name)
        assert missing_bytes(path) == 0
        for fraction in (0.99, 0.5):
            assert missing_bytes(make.cut(path, fraction)) > 0


def test_a_gif_cut_between_two_frames_is_missed_by_its_trailer(tmp_path, make):
    path = make.animation(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:-1])
    assert missing_bytes(path) == 1


def test_a_large_mdat_box_is_understood(tmp_path):
    path = tmp_path / "a.mp4"
    ftyp = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    path.write_bytes(ftyp + struct.pack(">I4sQ", 1, b"mdat", 116) + b"x" * 60)
    assert missing_bytes(path) == 40


def test_appended_bytes_and_unknown_files_are_no_promise(tmp_path, make):
    path = make.clip(tmp_path / "a.mp4", 4)
    path.write_bytes(path.read_bytes() + b"\x7f\x00\x00\x00junkjunkjunk")
    assert missing_bytes(path) == 0
    other = tmp_path / "b.bin"
    other.write_bytes(b"short")
    assert missing_bytes(other) == 0


def test_a_matroska_file_of_unknown_length_is_no_promise(tmp_path, make):
    path = make.clip(tmp_path / "a.mkv", 4, container={"live": "1"})
    assert missing_bytes(path) == 0
    assert missing_bytes(make.cut(path, 0.5)) == 0
