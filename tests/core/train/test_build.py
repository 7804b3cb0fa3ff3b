"""What is told of a job before it starts: clips at another frame rate than the model's, and the other expert's file."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.saving import SavingOptions
from wan_train.core.settings.stage import StageSettings
from wan_train.core.train.build import check_expert, job_warnings
from wan_train.core.train.length import job_length


def with_clips(job, *, channels, frames, fps, more_fps=()):
    samples = tuple(replace(sample, shape=(channels, frames, 4, 4)) for sample in job.data.samples)
    return replace(job, data=replace(job.data, samples=samples, fps=fps, more_fps=more_fps))


@pytest.mark.parametrize(
    ("channels", "fps", "more_fps", "words"),
    [
        (48, 16.0, (), "the clips have 16 frames per second, but TI2V 5B was trained at 24: "),
        (16, 24.0, (), "the clips have 24 frames per second, but this model was trained at 16: "),
        (48, 24.0, (16.0, 30.0), "the clips have 16 and 30 frames per second, but TI2V 5B was trained at 24: "),
    ],
)
def test_another_frame_rate_is_told(job, channels, fps, more_fps, words):
    (sentence,) = job_warnings(with_clips(job, channels=channels, frames=2, fps=fps, more_fps=more_fps))
    assert sentence.startswith(words)
    assert sentence.endswith(f"set fps of the dataset to {24 if channels == 48 else 16}.")


@pytest.mark.parametrize(("channels", "frames", "fps"), [(48, 2, 24.0), (16, 2, 16.0), (48, 1, 16.0), (16, 1, 24.0)])
def test_the_right_rate_and_pictures_are_not(job, channels, frames, fps):
    assert job_warnings(with_clips(job, channels=channels, frames=frames, fps=fps)) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"every": 100},
            "ema_update_interval (100) is longer than the run (20 steps): the average stays as untrained as at the start; "
            "lower ema_update_interval, or turn ema off.",
        ),
        (
            {"decay": 0.99, "warm_up": False},
            "after 20 steps 82% of the average is still the untrained start: lower ema_decay or ema_update_interval, turn "
            "ema_warmup on, or turn ema off.",
        ),
    ],
)
def test_an_average_that_cannot_follow_in_so_short_a_run_is_told(job, options, sentence):
    short = replace(job, loop=replace(job.loop, steps=20))
    assert job_warnings(replace(short, ema=EmaOptions(use=True, **options))) == [sentence]
    assert job_warnings(replace(short, ema=EmaOptions(use=True))) == []
    long = replace(job, loop=replace(job.loop, steps=200_000))
    assert job_warnings(replace(long, ema=EmaOptions(use=True, **options))) == []


def test_epochs_between_checkpoints_that_are_more_than_the_run_has_are_told(job):
    def told(every):
        return job_warnings(replace(job, saving=SavingOptions(every_epochs=every)))

    epochs = job_length(job).epochs
    assert told(0) == told(int(epochs)) == []
    assert told(int(epochs) + 1) == [
        f"checkpoint_every_epochs is {int(epochs) + 1}, but the run has {epochs:.3g} epochs: its only checkpoint is that of its"
        " end; lower checkpoint_every_epochs."
    ]


@pytest.mark.parametrize(
    ("name", "stage", "allow", "is_refused"),
    [
        ("wan2.2_t2v_high_noise_14B.safetensors", "low", False, True),
        ("wan2.2_t2v_low_noise_14B.safetensors", "high", False, True),
        ("wan2.2_t2v_high_noise_14B.safetensors", "low", True, False),
        ("wan2.2_t2v_high_noise_14B.safetensors", "high", False, False),
        ("wan2.2_t2v_high_noise_14B.safetensors", "single", False, False),
        ("wan2.1_t2v_14B.safetensors", "low", False, False),
    ],
)
def test_the_other_experts_file_is_refused_unless_it_is_meant(name, stage, allow, is_refused):
    expected = pytest.raises(ConfigError, match=rf"{name} is the .* but the stage is {stage} noise.*allow_other_expert")
    with expected if is_refused else nullcontext():
        check_expert(Path("models") / name, stage, allow_other=allow)


def test_the_switch_has_no_effect_with_a_single_model():
    (sentence,) = StageSettings(allow_other_expert=True).warnings("single")
    assert sentence.startswith("allow_other_expert has no effect with a single model")
    assert StageSettings(allow_other_expert=True).warnings("low") == []


def test_a_single_model_has_none_to_take_turns_with():
    (sentence,) = StageSettings(alternate_every=10).warnings("single")
    assert sentence.startswith("alternate_every has no effect with a single model")
    assert StageSettings(alternate_every=10).warnings("low") == []
    (*_, sentence) = StageSettings(alternate_every=10, shared_lora=True).warnings("single")
    assert sentence.startswith("shared_lora has no effect with a single model")
