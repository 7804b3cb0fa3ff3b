"""Text files in the encodings that people have."""

import pytest
from wan_train.core.data.media import BadMediaError
from wan_train.core.data.text_files import read_text_file

MIXED = "[trigger] a caf\u00e9, \u201csmart\u201d \u2013 \u65e5\u672c, dog"


@pytest.mark.parametrize(
    ("data", "text", "told"),
    [
        ("a small dog".encode("utf-16-le"), "a small dog", "has no mark and was read as UTF-16-LE"),
        ("a small dog".encode("utf-16-be"), "a small dog", "has no mark and was read as UTF-16-BE"),
        ("a small dog".encode("utf-32"), "a small dog", ""),
        (MIXED.encode("utf-32"), MIXED, ""),
        (MIXED.encode("utf-16-le"), MIXED, "has no mark and was read as UTF-16-LE"),
        (b"\xff\xfe" + MIXED.encode("utf-16-le"), MIXED, ""),
        (b"\xfe\xff" + MIXED.encode("utf-16-be"), MIXED, ""),
        (b"\xef\xbb\xbfa dog\r\nruns", "a dog\r\nruns", ""),
        (b"a dog\0\0", "a dog", "holds letters of the value 0, which were left out"),
        (
            b"it\x92s a \x93dog\x94",
            "it\u2019s a \u201cdog\u201d",
            "is not UTF-8 and was read as Windows-1252: look at it, and save it as UTF-8",
        ),
        (
            "\u4e00\u53ea\u72d7".encode("gbk"),
            None,
            "is not UTF-8 and was read as Windows-1252: look at it, and save it as UTF-8",
        ),
        (
            "\u732b".encode("shift-jis"),
            None,
            "is not UTF-8 and was read as Windows-1252: look at it, and save it as UTF-8",
        ),
        (b"", "", ""),
    ],
)
def test_encodings(tmp_path, data, text, told):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    found, why = read_text_file(path)
    assert (found if text is not None else None, why) == (text, told)


@pytest.mark.parametrize(
    ("name", "told"),
    [("png", "a PNG picture"), ("jpg", "a JPEG picture"), ("gif", "a GIF picture"), ("webp", "a WebP")],
)
def test_a_picture_is_no_text(tmp_path, make, name, told):
    make.image(tmp_path / f"a.{name}")
    with pytest.raises(BadMediaError, match=f"it is no text file but {told}"):
        read_text_file(tmp_path / f"a.{name}")


def test_a_clip_is_no_text(tmp_path, make):
    make.clip(tmp_path / "a.mp4")
    with pytest.raises(BadMediaError, match="it is no text file but an MP4 or MOV clip"):
        read_text_file(tmp_path / "a.mp4")


def test_the_largest_and_a_larger_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    assert read_text_file(tmp_path / "a.txt", 100) == ("x" * 100, "")
    with pytest.raises(BadMediaError, match="it has more than 99 bytes"):
        read_text_file(tmp_path / "a.txt", 99)
