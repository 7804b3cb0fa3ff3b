"""Pictures with a colour profile show in sRGB what the profile says."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from wan_train.core.data.pictures import probe_picture, read_picture

# D50-adapted XYZ of red, green and blue, as the profile of Display P3 holds them, and those of sRGB.
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
_GAMMA = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of sRGB
CURVE = struct.pack(">4sIHHiiiii", b"para", 0, 3, 0, *(round(v * 65536) for v in _GAMMA))


def profile(columns):
    """An ICC profile (version 4) of these primaries and sRGB's curve: ICC.1:2022, sections 7, 10.15, 10.18 and 10.31."""
    xyz = [struct.pack(">4sIiii", b"XYZ ", 0, *(round(v * 65536) for v in values)) for values in columns]
    white = struct.pack(">4sIiii", b"XYZ ", 0, *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    text = struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", 2, 28) + "x".encode("utf-16be") + b"\0\0"
    tags = {
        b"desc": text,
        b"cprt": text,
        b"wtpt": white,
        b"rXYZ": xyz[0],
        b"gXYZ": xyz[1],
        b"bXYZ": xyz[2],
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), CURVE),
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = bytearray(128)
    struct.pack_into(">I4sI4s4s4s", head, 0, start + len(body), b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head[36:40] = b"acsp"
    struct.pack_into(">iii", head, 68, *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return bytes(head) + table + body


def linear(level):
    value = np.asarray(level) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def level(light):
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def read(path):
    found = probe_picture(path)
    ((_, image),) = read_picture(path, [0], read_as=found.read_as)
    return found, np.asarray(image).astype(int)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_display_p3_becomes_srgb(tmp_path, name):
    colour = (150, 120, 110)
    extra = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {"lossless": True} if name == "a.webp" else {}
    Image.new("RGB", (32, 32), colour).save(tmp_path / name, icc_profile=profile(DISPLAY_P3), **extra)
    found, pixels = read(tmp_path / name)
    expected = level(TO_SRGB @ linear(colour))
    assert expected[0] - colour[0] > 5  # a difference that is seen
    assert np.abs(pixels - expected).max() <= 2
    assert found.read_as == ("icc",)
    assert "colour profile other than sRGB" in found.remarks[0]


@pytest.mark.parametrize("made", [profile(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_a_profile_of_srgb_changes_nothing(tmp_path, made):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=made)
    found, read_pixels = read(tmp_path / "a.png")
    assert (found.read_as, found.remarks) == ((), ())
    assert np.array_equal(read_pixels, pixels)


def test_what_is_transparent_stays_so(tmp_path):
    Image.new("RGBA", (20, 20), (150, 120, 110, 0)).save(tmp_path / "a.png", icc_profile=profile(DISPLAY_P3))
    _, pixels = read(tmp_path / "a.png")
    assert (pixels == 255).all()
    palette = Image.new("RGB", (20, 20), (150, 120, 110)).quantize(4)
    palette.save(tmp_path / "b.png", icc_profile=profile(DISPLAY_P3))
    _, pixels = read(tmp_path / "b.png")
    assert np.abs(pixels - level(TO_SRGB @ linear((150, 120, 110)))).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_profile_that_is_none_is_told_and_left_alone(tmp_path, mode):
    Image.new(mode, (20, 20)).save(tmp_path / "a.jpg", icc_profile=b"no profile at all")
    found, _ = read(tmp_path / "a.jpg")
    assert found.read_as == ()
    assert found.remarks == ("its colour profile is not used, since it can't be read: its colours are taken as sRGB",)


def test_a_profile_for_another_kind_of_picture_is_told(tmp_path):
    Image.new("CMYK", (20, 20)).save(tmp_path / "a.jpg", icc_profile=profile(SRGB))
    found, _ = read(tmp_path / "a.jpg")
    assert "it is one for other kinds of pictures" in found.remarks[0]


def test_grey_pictures_with_a_profile_of_colours(tmp_path):
    Image.new("L", (20, 20), 120).save(tmp_path / "a.jpg", icc_profile=profile(DISPLAY_P3))
    _, pixels = read(tmp_path / "a.jpg")
    assert np.abs(pixels - 120).max() <= 1  # grey is the same in both
