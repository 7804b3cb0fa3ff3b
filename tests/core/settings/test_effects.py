"""Options that have no effect are told before the start; values and bounds are refused by name."""

from dataclasses import dataclass, replace

import pytest
from wan_train.core.data.report import describe_dataset
from wan_train.core.data.types import Dataset
from wan_train.core.errors import ConfigError
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.option import Options, option, options_of, without_effect
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.settings.stage import StageSettings, settings_from_names
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.build import job_warnings


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (DatasetOptions(windows_per_clip=9), "windows_per_clip has no effect with frame_sampling head; it belongs to uniform."),
        (DatasetOptions(short_clips="skip", frame_sampling="full"), "short_clips has no effect with frame_sampling full."),
        (DatasetOptions(slide_stride=9), "slide_stride has no effect with frame_sampling head; it belongs to slide."),
        (DatasetOptions(num_frames=81, frame_sampling="full"), "num_frames has no effect with frame_sampling full."),
        (ScheduleOptions(floor=0.1), "lr_floor has no effect with lr_schedule constant."),
        (ScheduleOptions(kind="linear", power=2.0), "lr_power has no effect with lr_schedule linear; it belongs to"
         " polynomial."),
        (TimestepOptions(shift=5.0), "timestep_shift has no effect with timestep_sampling uniform; it belongs to shift."),
        (TimestepOptions(sigmoid_scale=2.0), "sigmoid_scale has no effect with timestep_sampling uniform; it belongs to"
         " sigmoid and shift."),
        (LoopOptions(token_budget=99), "token_budget has no effect with batch_size 1."),
    ],
)  # fmt: skip
def test_an_option_outside_its_mode_is_told(options, sentence):
    assert without_effect(options) == [sentence]


@pytest.mark.parametrize(
    "options",
    [
        DatasetOptions(frame_sampling="uniform", windows_per_clip=9),
        DatasetOptions(frame_sampling="slide", slide_stride=9),
        ScheduleOptions(kind="polynomial", floor=0.1, power=2.0),
        TimestepOptions(sampling="shift", shift=5.0, sigmoid_scale=2.0),
        LoopOptions(token_budget=99, batch_size=2),
        PreviewOptions(steps=3, cfg=1.0),  # nobody asked for previews: nothing to tell
    ],
)
def test_an_option_in_its_mode_is_not(options):
    assert without_effect(options) == []


def test_without_previews_nothing_is_told_of_them(job):
    settings = StageSettings(previews=PreviewOptions(every=0))
    assert job_warnings(replace(job, previews=settings.previews), settings) == []
    assert settings_from_names({"preview_every": 0}).warnings("low") == []


def test_the_datasets_report_tells_it():
    options = DatasetOptions(slide_stride=9)
    report = describe_dataset(Dataset(folder="x", options=options, samples=(), notes=()))
    assert "- slide_stride has no effect with frame_sampling head" in report


def test_a_boundary_of_a_single_model_is_told(job):
    settings = StageSettings(boundary=0.9)
    single = replace(job, stage="single", timesteps=TimestepOptions())
    assert ["boundary" in sentence for sentence in job_warnings(single, settings)] == [True]
    assert job_warnings(single, StageSettings()) == job_warnings(job, settings) == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AdapterOptions(rank=0), "rank must be at least 1, got 0."),
        (lambda: AdapterOptions(rank=5000), "rank must be at most 4096, got 5000."),
        (lambda: AdapterOptions(alpha=float("nan")), "alpha must be 0 (the rank) or more, got nan; the usual choice is the"),
        (lambda: OptimizerOptions(learning_rate=0.0), "learning_rate must be above 0, got 0.0."),
        (lambda: OptimizerOptions(eps=float("inf")), "optimizer_eps must be at most 1, got inf."),
        (lambda: OptimizerOptions(name="lion\n"), "optimizer is 'lion\N{REPLACEMENT CHARACTER}': choose one of adamw"),
        (lambda: MemoryOptions(budget_gb=-1.0), "budget_gb must be 0 (what is free) or a number of GB, got -1.0."),
        (lambda: MemoryOptions(streamed_blocks=-1), "streamed_blocks must be 0 (none) or a number of blocks, got -1."),
        (lambda: PreviewOptions(every=-3), "preview_every must be 0 (no previews) or a number of steps, got -3."),
        (lambda: StageSettings(precision="fp7"), "precision is 'fp7': choose one of auto, fp32"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_by_name(make, sentence):
    with pytest.raises(ConfigError) as refusal:
        make()
    assert str(refusal.value).startswith(sentence)


def test_values_from_text():
    known = {item.name: item for item in (*options_of(MemoryOptions), *options_of(AdapterOptions))}
    read = {name: known[name].read(text) for name, text in (
        ("checkpointing", "on"), ("split_blocks", "auto"), ("streamed_blocks", "7"), ("stream_from", "auto"),
        ("attention", "auto"), ("alpha", "1e1"), ("targets", "ffn,self_attn"),
    )}  # fmt: skip
    assert read == {
        "checkpointing": True, "split_blocks": None, "streamed_blocks": 7, "stream_from": None, "attention": "auto",
        "alpha": 10.0, "targets": ["ffn", "self_attn"],
    }  # fmt: skip
    for name, text in (("checkpointing", "maybe"), ("rank", "4.5")):
        with pytest.raises(ConfigError, match=f"{name} is '{text}', which is no value of it"):
            known[name].read(text)


def test_an_option_must_be_declared_with_words_that_there_are():
    with pytest.raises(TypeError, match="tooltip"):

        @dataclass(frozen=True, kw_only=True)
        class Group(Options, group="group"):
            size: int = option(1, help="Size.", tooltip="Another word for help.")
