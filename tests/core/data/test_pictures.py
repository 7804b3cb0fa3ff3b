import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from wan_train.core.data.media import BadMediaError
from wan_train.core.data.pictures import probe_picture, read_picture
from wan_train.core.data.reading import Contents

PACK = Path(__file__).resolve().parents[3]


def read(path, indices=(0,)):
    return [(index, np.asarray(image)) for index, image in read_picture(path, list(indices))]


def when(path):
    found = probe_picture(path)
    return found.times_us, found.end_us


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.avif"])
def test_still_images(tmp_path, make, name):
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = make.image(tmp_path / name, (63, 47), quality=95)
    assert probe_picture(path) == Contents(width=63, height=47, times_us=(0,), end_us=0)
    ((index, pixels),) = read(path)
    assert index == 0
    assert pixels.shape == (47, 63, 3)
    assert np.abs(pixels.astype(int) - (200, 60, 30)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = (250, 0, 0)  # red at the top left as displayed
    # What a camera stores so that the given orientation displays as `upright` (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert probe_picture(path).size == (48, 32)
    assert np.array_equal(read(path)[0][1], upright)


def test_transparency_is_laid_on_white(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(path)
    assert (read(path)[0][1] == 255).all()
    Image.new("RGBA", (20, 20), (0, 0, 0, 128)).save(path)
    assert np.abs(read(path)[0][1].astype(int) - 127).max() <= 1


def test_palette_grey_and_16_bit_images(tmp_path):
    grey16 = tmp_path / "a.png"
    Image.fromarray(np.full((20, 30), 0x8040, np.uint16)).save(grey16)
    assert (read(grey16)[0][1] == 0x80).all()
    palette = tmp_path / "b.png"
    Image.new("RGB", (20, 20), (9, 200, 77)).quantize(4).save(palette)
    assert (read(palette)[0][1] == (9, 200, 77)).all()
    cmyk = tmp_path / "c.jpg"
    Image.new("CMYK", (20, 20), (0, 0, 0, 255)).save(cmyk)
    assert read(cmyk)[0][1].max() < 10


@pytest.mark.parametrize(("name", "extra"), [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})])
def test_animations_have_frames_and_times(tmp_path, make, name, extra):
    path = make.animation(tmp_path / name, 5, delay_ms=[100, 50, 40, 200, 80], **extra)
    times = (0, 100_000, 150_000, 190_000, 390_000)
    assert probe_picture(path) == Contents(width=60, height=40, times_us=times, end_us=470_000)
    assert [(index, pixels[5, 5, 0]) for index, pixels in read(path, [1, 3])] == [
        (1, make.level(1)),
        (3, make.level(3)),
    ]


def test_gif_delays_too_short_to_show_count_as_100_ms(tmp_path, make):
    path = make.animation(tmp_path / "a.gif", 3, delay_ms=[0, 10, 20])
    assert when(path) == ((0, 100_000, 200_000), 220_000)


def test_a_one_frame_gif_is_an_image(tmp_path, make):
    assert when(make.image(tmp_path / "a.gif")) == ((0,), 0)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
@pytest.mark.parametrize("fraction", [0.5, 0.97])
def test_cut_images_are_bad(tmp_path, name, fraction, make):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    make.cut(path, fraction)
    with pytest.raises(BadMediaError, match="the image cannot be decoded"):
        probe_picture(path)


def test_text_in_disguise_and_too_few_frames(tmp_path, make):
    path = tmp_path / "a.jpg"
    path.write_text("not a picture")
    with pytest.raises(BadMediaError, match="not an image of a known format, or cut off"):
        probe_picture(path)
    with pytest.raises(BadMediaError, match="it has 3 frames, but frame 7 was expected"):
        read(make.animation(tmp_path / "b.gif", 3), [0, 7])


def test_whatever_pil_raises_is_a_bad_file(tmp_path, make):
    path = make.image(tmp_path / "a.gif", (2, 2))
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # where the next block's kind should be
    with pytest.raises(IndexError), Image.open(path) as image:
        getattr(image, "n_frames")  # noqa: B009
    with pytest.raises(BadMediaError, match=r"the image cannot be decoded \(index out of range\)"):
        probe_picture(path)


def test_a_file_that_would_run_a_program_of_the_system_is_not_opened(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(x) run\n")
    with Image.open(path) as image:
        assert image.format == "EPS"  # which PIL gives to Ghostscript
    with pytest.raises(BadMediaError, match="not an image of a known format"):
        probe_picture(path)


def test_no_format_is_unknown_while_another_thread_still_looks_them_up(tmp_path, make):
    """In a process of its own: PIL looks its formats up once."""
    make.image(tmp_path / "a.gif")
    script = (
        "import importlib.util, sys, threading\n"
        f"spec = importlib.util.spec_from_file_location('wan_train', {str(PACK / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(PACK)!r}])\n"
        "sys.modules['wan_train'] = importlib.util.module_from_spec(spec)\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from wan_train.core.data.pictures import probe_picture\n"
        "begun, go, real = threading.Event(), threading.Event(), Image.init\n"
        "def slow():\n"  # half of the formats are known, as in the middle of PIL's own look-up
        "    if not begun.is_set():\n"
        "        from PIL import AvifImagePlugin\n"
        "        begun.set()\n"
        "        go.wait()\n"
        "    return real()\n"
        "Image.init = slow\n"
        "first = threading.Thread(target=slow)\n"
        "first.start()\n"
        "begun.wait()\n"
        f"print(probe_picture(Path({str(tmp_path / 'a.gif')!r})).size)\n"
        "go.set()\n"
        "first.join()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout == "(64, 48)\n", result.stderr


def test_the_default_image_of_an_apng_is_no_frame_of_it(tmp_path):
    path = tmp_path / "a.png"
    red, greys = Image.new("RGB", (60, 40), (255, 0, 0)), [Image.new("RGB", (60, 40), (i, i, i)) for i in (10, 60, 110)]
    red.save(path, save_all=True, append_images=greys, default_image=True, duration=[100, 50, 150])
    found = probe_picture(path)
    assert found.times_us == (0, 100_000, 150_000)
    assert found.end_us == 300_000
    assert found.read_as == ("animation",)
    assert found.remarks == ("its first picture is no part of the animation, and is not used",)
    assert [(index, pixels[5, 5, 0]) for index, pixels in read(path, [0, 2])] == [(0, 10), (2, 110)]


def test_an_apng_without_a_default_image_is_read_as_ever(tmp_path, make):
    found = probe_picture(make.animation(tmp_path / "a.png", 3))
    assert (found.read_as, found.remarks, len(found.times_us)) == ((), (), 3)
