"""HDR and wide primaries become what an ordinary screen shows; by numbers of the standards."""

import av
import numpy as np
import pytest
from wan_train.core.data.colour import _matrix, _to_xyz, to_sdr
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.settings.dataset import DatasetOptions

# ITU-R BT.2087-0, table 4 inverted: linear BT.2020 to linear BT.709.
BT2087 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
P3 = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]  # Display P3 to sRGB


def write(path, luma, *, transfer, primaries, matrix="bt2020nc", full=False):
    """A 10-bit clip of one grey level, tagged."""
    tags = f"transfer={transfer}:colorprim={primaries}:colormatrix={matrix}:qp=0"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"x264-params": tags})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        stream.codec_context.color_range = 2 if full else 1
        for _ in range(5):
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, value in zip(frame.planes, (luma, 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def scan(folder):
    return scan_folder(folder, DatasetOptions(width=64, height=64, num_frames=5, default_caption="x"))


def limited(signal):
    return round(64 + 876 * signal)


def of(signal, *read_as):
    """What one grey of a signal in 0..1 becomes."""
    (red, green, blue) = to_sdr(np.full((1, 1, 3), round(signal * 65535), np.uint16), read_as)[0, 0].tolist()
    assert red == green == blue
    return red


def test_primaries_are_those_of_the_standards():
    assert np.abs(_matrix("bt2020") - BT2087).max() < 1e-3
    assert np.abs(_matrix("p3") - P3).max() < 1e-3
    assert np.abs(_to_xyz("bt709")[1] - (0.2126, 0.7152, 0.0722)).max() < 1e-4  # BT.709's weights of luminance


@pytest.mark.parametrize("read_as", [("pq", "bt2020"), ("hlg", "bt2020"), ("pq",), ("hlg",)])
def test_white_is_near_255_and_black_is_0(read_as):
    white = 0.5807 if "pq" in read_as else 0.75  # 203 nits: BT.2408-7, table 1
    assert 247 <= of(white, *read_as) <= 253
    assert of(0, *read_as) == 0
    assert of(1, *read_as) == 255
    levels = [of(step / 100, *read_as) for step in range(101)]
    assert levels == sorted(levels)


def test_below_the_knee_light_is_what_the_screen_showed():
    # 26 nits, 18 % grey by BT.2408-7, table 1, is 38 % of PQ and of HLG; of a white of 203 nits a screen of gamma 2.4
    # needs (26 / 203) ** (1 / 2.4) of 255 for it: 108.
    assert abs(of(0.38, "pq") - 108) <= 1
    assert abs(of(0.38, "hlg") - 108) <= 2


def test_light_above_white_keeps_its_hue():
    red, green, blue = to_sdr(np.array([[[60000, 45000, 45000]]], np.uint16), ("pq",))[0, 0].tolist()
    assert red > 250
    assert green == blue < 120  # and not cut off at 255, as each channel alone would be


def test_wide_colours_of_ordinary_light_go_through_the_matrix_alone():
    signal = np.array([0.5, 0.6, 0.55])
    expected = 255 * (np.array(P3) @ signal**2.4) ** (1 / 2.4)
    found = to_sdr(np.rint(signal * 65535).astype(np.uint16)[None, None], ("p3",))[0, 0]
    assert np.abs(found - expected).max() <= 1
    assert of(1, "p3") == of(1, "bt2020") == 255


@pytest.mark.parametrize(
    ("transfer", "signal", "word"), [("smpte2084", 0.5807, "HDR (PQ)"), ("arib-std-b67", 0.75, "HDR (HLG)")]
)
def test_an_hdr_clip_is_read_as_sdr_and_told(folder, transfer, signal, word):
    write(folder / "a.mp4", limited(signal), transfer=transfer, primaries="bt2020")
    dataset = scan(folder)
    assert 246 <= read_frames(dataset.samples[0]).float().mean() <= 254
    assert any(word in note.reason for note in dataset.notes)
    assert any("BT.2020" in note.reason for note in dataset.notes)


@pytest.mark.parametrize("full", [False, True])
def test_ten_bit_clips_of_ordinary_colour_stay_as_they_were(folder, full):
    luma = round(1023 * 0.4) if full else limited(0.4)
    write(folder / "a.mp4", luma, transfer="bt709", primaries="bt709", matrix="bt709", full=full)
    dataset = scan(folder)
    assert abs(read_frames(dataset.samples[0]).float().mean() - 0.4 * 255) <= 1
    assert dataset.samples[0].file.read_as == ()
    assert dataset.notes == ()
