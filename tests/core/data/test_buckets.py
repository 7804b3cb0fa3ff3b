import math
import random

import pytest
from wan_train.core.data.buckets import bucket_for, bucket_sizes, cover_box, crop_loss, held_out_indices
from wan_train.core.settings.dataset import DatasetOptions


def test_the_asked_size_is_used_for_its_own_aspect():
    assert bucket_for(1664, 960, DatasetOptions()) == (832, 480)
    assert bucket_for(960, 1664, DatasetOptions()) == (480, 832)
    assert bucket_for(1920, 1080, DatasetOptions()) == (832, 480)
    assert bucket_for(1000, 1000, DatasetOptions()) == (624, 624)


def test_every_bucket_is_a_multiple_of_16_and_fits_the_area():
    for area in (832 * 480, 512 * 512, 16 * 16, 64 * 48):
        for width, height in bucket_sizes(area):
            assert width % 16 == height % 16 == 0
            assert width >= 16
            assert height >= 16
            assert width * height <= area


def test_no_other_bucket_is_nearer_in_aspect():
    rng = random.Random(0)
    options = DatasetOptions()
    for _ in range(100):
        width, height = rng.randrange(100, 4000), rng.randrange(100, 4000)
        chosen = bucket_for(width, height, options)
        distance = abs(math.log(chosen[0] / chosen[1] * height / width))
        assert all(distance <= abs(math.log(w / h * height / width)) + 1e-8 for w, h in bucket_sizes(832 * 480))
        if 0.3 < width / height < 3.3:
            assert max(crop_loss(width, height, chosen)) < 0.05


def test_without_buckets_everything_gets_the_asked_size():
    assert bucket_for(300, 900, DatasetOptions(aspect_buckets=False)) == (832, 480)


def test_without_upscaling_small_files_keep_their_size():
    options = DatasetOptions(upscale=False)
    assert bucket_for(200, 120, options) == (192, 112)
    assert bucket_for(1664, 960, options) == (832, 480)
    assert bucket_for(16, 16, options) == (16, 16)


def test_without_upscaling_no_side_is_scaled_up_and_the_area_holds():
    rng = random.Random(2)
    for buckets in (True, False):
        options = DatasetOptions(upscale=False, aspect_buckets=buckets)
        for _ in range(100):
            width, height = rng.randrange(16, 2000), rng.randrange(16, 2000)
            chosen = bucket_for(width, height, options)
            assert chosen[0] <= width
            assert chosen[1] <= height
            assert chosen[0] * chosen[1] <= 832 * 480


def test_cover_box_is_centred_and_has_the_aspect():
    assert cover_box(200, 100, (100, 100)) == (50, 0, 150, 100)
    assert cover_box(100, 300, (50, 100)) == (0, 50, 100, 250)
    assert crop_loss(200, 100, (100, 100)) == (0.5, 0)
    assert crop_loss(64, 48, (64, 48)) == (0, 0)


def test_whole_files_are_held_out_evenly():
    assert held_out_indices([1] * 10, 2) == {2, 7}
    assert held_out_indices([4] * 4, 8) == {4, 5, 6, 7, 12, 13, 14, 15}
    assert held_out_indices([3, 3], 0) == set()


def test_one_file_is_divided_where_the_count_demands_it():
    assert held_out_indices([10], 3) == {7, 8, 9}
    assert held_out_indices([4] * 4, 2) == {10, 11}


@pytest.mark.parametrize("seed", range(5))
def test_the_count_is_exact_and_at_most_one_file_is_divided(seed):
    rng = random.Random(seed)
    for _ in range(50):
        sizes = [rng.randrange(1, 7) for _ in range(rng.randrange(1, 12))]
        count = rng.randrange(0, sum(sizes))
        held = held_out_indices(sizes, count)
        assert len(held) == count
        start, divided = 0, 0
        for size in sizes:
            inside = sum(start + i in held for i in range(size))
            divided += 0 < inside < size
            start += size
        assert divided <= 1
