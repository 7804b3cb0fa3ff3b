import random

import pytest
from wan_train.core.data.sampling import mean_fps, resample, select_frames, window_starts
from wan_train.core.errors import ConfigError
from wan_train.core.facts import longest_clip
from wan_train.core.settings.dataset import DatasetOptions


def steady(num_frames, fps):
    return tuple(round(i * 1e6 / fps) for i in range(num_frames)), round(num_frames * 1e6 / fps)


def actions(selection):
    return [action for action, _ in selection.notes]


def test_a_fast_clip_drops_frames():
    assert resample(*steady(120, 60), 16)[:8] == (0, 4, 7, 11, 15, 19, 22, 26)
    assert len(resample(*steady(120, 60), 16)) == 32


def test_a_slow_clip_repeats_frames():
    assert resample(*steady(5, 8), 16) == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)


@pytest.mark.parametrize("fps", [16.0, 15.984, 16.1])
def test_a_rate_within_one_percent_is_left_alone(fps):
    assert resample(*steady(33, fps), 16) == tuple(range(33))


def test_times_rounded_to_milliseconds_add_no_frame():
    times = tuple(round(i * 1000 / 24) * 1000 for i in range(49))
    assert len(resample(times, times[-1] + 42_000, 16)) == 33  # 49 frames at 24 are 2.04 s


def test_a_variable_rate_follows_the_clock():
    # One frame stands for a second, the others follow at 16 per second.
    times = (0, 1_000_000, 1_062_500, 1_125_000)
    frames = resample(times, 1_187_500, 16)
    assert len(frames) == 19
    assert frames[:9] == (0,) * 9  # nearest to the first frame up to half a second
    assert frames[9:] == (1,) * 8 + (2, 3)


def test_resampling_is_monotone_and_never_off_by_more_than_half_a_gap():
    rng = random.Random(0)
    for _ in range(50):
        times = [0]
        for _ in range(rng.randrange(1, 40)):
            times.append(times[-1] + rng.randrange(5_000, 120_000))
        end, fps = times[-1] + 40_000, rng.uniform(4, 60)
        frames = resample(times, end, fps)
        assert list(frames) == sorted(frames)
        if frames != tuple(range(len(times))):
            for k, index in enumerate(frames):
                best = min(abs(t - k * 1e6 / fps) for t in times)
                assert abs(times[index] - k * 1e6 / fps) == best


def test_longest_clip():
    assert [longest_clip(n) for n in (1, 2, 4, 5, 8, 9, 33, 36)] == [1, 1, 1, 5, 5, 9, 33, 33]


def test_mean_fps():
    assert mean_fps(*steady(60, 24)) == pytest.approx(24, rel=1e-6)
    assert mean_fps((0,), 0) == 0


@pytest.mark.parametrize("sampling", ["head", "chunk", "slide", "uniform", "full", "even"])
def test_every_window_is_4n1_long_and_inside_the_clip(sampling):
    rng = random.Random(1)
    for _ in range(40):
        options = DatasetOptions(
            num_frames=rng.randrange(0, 9) * 4 + 1,
            frame_sampling=sampling,
            windows_per_clip=rng.randrange(1, 6),
            slide_stride=rng.randrange(1, 20),
            fps=rng.choice([8.0, 16.0, 24.0]),
        )
        total = rng.randrange(1, 120)
        selection = select_frames(*steady(total, rng.choice([8, 16, 25, 60])), options)
        assert selection.windows
        assert len(set(selection.windows)) == len(selection.windows) or options.fps > 8
        for window in selection.windows:
            assert len(window) % 4 == 1
            assert list(window) == sorted(window)
            assert window[0] >= 0
            assert window[-1] < total
            if sampling != "full":
                assert len(window) <= options.num_frames


def test_head_takes_the_start_and_tells_of_the_rest():
    selection = select_frames(*steady(40, 16), DatasetOptions(num_frames=33))
    assert selection.windows == (tuple(range(33)),)
    assert selection.notes == (("cropped", "7 of 40 frames at the end are in no window"),)


def test_an_exact_fit_needs_no_note():
    assert select_frames(*steady(33, 16), DatasetOptions(num_frames=33)).notes == ()


def test_chunk_takes_consecutive_windows():
    selection = select_frames(*steady(23, 16), DatasetOptions(num_frames=9, frame_sampling="chunk"))
    assert selection.windows == (tuple(range(9)), tuple(range(9, 18)))
    assert actions(selection) == ["cropped"]


def test_slide_takes_a_window_per_stride():
    options = DatasetOptions(num_frames=9, frame_sampling="slide", slide_stride=4)
    assert window_starts(20, options) == ((0, 4, 8), 9)


def test_uniform_reaches_both_ends_and_never_repeats_a_window():
    options = DatasetOptions(num_frames=9, frame_sampling="uniform", windows_per_clip=4)
    assert window_starts(39, options) == ((0, 10, 20, 30), 9)
    assert window_starts(11, options) == ((0, 1, 2), 9)
    assert window_starts(9, options) == ((0,), 9)


def test_full_ignores_num_frames():
    selection = select_frames(*steady(40, 16), DatasetOptions(num_frames=9, frame_sampling="full"))
    assert selection.windows == (tuple(range(37)),)
    short = select_frames(*steady(3, 16), DatasetOptions(frame_sampling="full", short_clips="refuse"))
    assert short.windows == ((0,),)


def test_even_spreads_over_the_clip_and_tells_the_speed():
    selection = select_frames(*steady(65, 16), DatasetOptions(num_frames=17, frame_sampling="even"))
    assert selection.windows == (tuple(range(0, 65, 4)),)
    assert selection.notes == (("resampled", "17 frames spread over 4.06 s: it plays at 4 x its speed"),)
    assert select_frames(*steady(17, 16), DatasetOptions(num_frames=17, frame_sampling="even")).notes == ()


def test_resampling_is_noted_with_both_rates():
    selection = select_frames(*steady(124, 60), DatasetOptions(num_frames=33))
    assert len(selection.windows[0]) == 33
    assert selection.notes[0] == ("resampled", "from 60 to 16 frames per second")


def test_a_short_clip_is_shortened_skipped_or_left_to_the_caller():
    clip = steady(12, 16)
    shortened = select_frames(*clip, DatasetOptions(num_frames=33))
    assert shortened.windows == (tuple(range(9)),)
    assert shortened.notes == (("shortened", "12 frames at 16 fps, fewer than num_frames 33: the first 9 are used"),)
    for choice in ("skip", "refuse"):
        selection = select_frames(*clip, DatasetOptions(num_frames=33, short_clips=choice))
        assert selection.windows == ()
        assert actions(selection) == ["skipped"]


def test_more_frames_than_a_machine_can_count_are_refused_before_they_are():
    hour = tuple(range(0, 3_600_000_000, 62_500))
    end = hour[-1] + 62_500
    assert select_frames(hour, end, DatasetOptions(frame_sampling="slide", slide_stride=1, num_frames=81)).problem == ""
    whole = select_frames(hour, end, DatasetOptions(frame_sampling="full"))
    assert whole.windows == ()
    assert "a single sample of 57597 frames was asked for, and 10000 are the limit" in whole.problem
    many = select_frames(hour, end, DatasetOptions(frame_sampling="slide", slide_stride=1, num_frames=1025))
    assert (
        "56576 windows of 1025 frames were asked for, 33554432 frames are the limit: raise slide_stride" in many.problem
    )
    gap = select_frames((0, 10**15), 2 * 10**15, DatasetOptions())
    assert "it runs for 5.56e+05 hours, and at 16 fps 86.8 are the limit" in gap.problem


@pytest.mark.parametrize("name", ["width", "height", "num_frames", "windows_per_clip", "repeats", "slide_stride"])
def test_options_have_upper_limits(name):
    with pytest.raises(ConfigError, match=f"{name} must be at most [0-9]+, got 1000000000001"):
        DatasetOptions(**{name: 10**12 + 1})
