"""What is measured of clips that are made to have each trouble, and of such that have none."""

import numpy as np
import pytest
from PIL import Image
from wan_train.core.look.measure import black_bars, blur_effect, hash_distance, measure, perceptual_hash
from wan_train.tests.core.look.material import (
    BLUE,
    RED,
    SIZE,
    barred,
    blurred,
    cut,
    flash,
    moving,
    still,
    textured,
)  # fmt: skip


@pytest.mark.parametrize("at", [1, 5, 9, 16])
def test_a_cut_is_found_at_its_frame(at):
    assert measure(cut(at)).cuts == (at,)


@pytest.mark.parametrize("frames", [moving(), moving(BLUE), textured(), flash(), still(), moving()[:1]])
def test_where_there_is_no_cut_none_is_found(frames):
    assert measure(frames).cuts == ()


def test_bars_are_measured_to_the_pixel():
    assert measure(barred(24)).bars == (0, 24, 0, 24)
    assert measure(barred(0, 30)).bars == (30, 0, 30, 0)
    assert measure(barred(10, 20)).bars == (20, 10, 20, 10)


def test_what_is_no_bar():
    assert measure(moving()).bars == (0, 0, 0, 0)
    assert measure(barred(2)).bars == (0, 0, 0, 0)  # about 1 % of the height
    one_sided = moving().copy()
    one_sided[:, :40] = 0
    assert black_bars(one_sided) == (0, 0, 0, 0)
    on_black = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    on_black[:, 60:120, 70:110] = 200
    assert black_bars(on_black) == (0, 0, 0, 0)  # a thing before a black ground
    assert black_bars(np.zeros((5, SIZE, SIZE, 3), np.uint8)) == (0, 0, 0, 0)


def test_a_bar_counts_only_where_it_is_black_all_the_time():
    frames = barred(24)
    frames[4, :24] = 200
    assert black_bars(frames) == (0, 0, 0, 0)


def test_noise_is_no_change_and_motion_is():
    assert measure(still()).change < 3
    assert measure(moving()).change > 50
    small = np.full((9, SIZE, SIZE, 3), 100, np.uint8)
    small[5:, 90:98, 90:98] = 200  # 8 x 8 pixels of 192 x 192
    assert measure(small).change > 50
    assert measure(moving()[:1]).change is None


def test_blur_grows_with_the_radius():
    values = [blur_effect(textured(1)[0]), *(measure(blurred(radius)).blur for radius in (1, 2, 4))]
    assert values == sorted(values)
    assert values[0] < 0.35
    assert values[-1] > 0.65
    assert blur_effect(np.full((64, 64, 3), 90, np.uint8)) == 0  # nothing there to be blurred


def test_blur_of_a_ramp_and_of_an_edge_by_hand():
    ramp = np.repeat(np.arange(0, 250, 2, dtype=np.uint8)[None, :, None], 125, 0).repeat(3, 2)
    assert blur_effect(ramp) == pytest.approx(1, abs=0.06)  # a ramp blurred is the ramp, but for its two ends
    edge = np.zeros((100, 100, 3), np.uint8)
    edge[:, 50:] = 220
    assert blur_effect(edge) == pytest.approx(1 / 11, abs=1e-4)  # a step spread over 11 pixels


def test_a_clip_is_as_sharp_as_its_sharpest_frame():
    frames = blurred()
    frames[8] = textured()[8]
    assert measure(frames).blur == pytest.approx(blur_effect(textured()[8]))


def test_hashes_stay_near_under_scaling_and_compression_and_differ_between_pictures(tmp_path):
    original = textured(1)[0]
    Image.fromarray(original).resize((150, 150)).save(tmp_path / "a.jpg", quality=50)
    copy = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert hash_distance(perceptual_hash(original), perceptual_hash(copy)) <= 4
    assert hash_distance(perceptual_hash(original), perceptual_hash(textured(1, 1)[0])) > 16
    assert hash_distance(perceptual_hash(moving(RED)[8]), perceptual_hash(moving(BLUE)[8])) > 16
    assert hash_distance("00000000000000ff", "000000000000000f") == 4
