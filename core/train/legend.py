"""What tells runs apart, in one chart or in a list: the settings that they do not share, in the words of the node."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..serial import AUTO, digest
from ..settings.job import Job
from ..settings.option import Option, options_of
from ..words import counted


@dataclass(frozen=True)
class Setting:
    """A setting by the name of its widget, and its value in each of the runs."""

    name: str
    values: tuple[str, ...]


def settings_that_differ(jobs: Sequence[Job]) -> list[Setting]:
    """Those in which not all of the jobs are alike. Names, devices and files' places are none; the content of data is."""
    columns = [dict(_settings(job)) for job in jobs]
    names = dict.fromkeys(name for column in columns for name in column)
    found = [(name, [column.get(name) for column in columns]) for name in names]
    return [
        Setting(name, tuple(_shown(value) for value in values))
        for name, values in found
        if any(value != values[0] for value in values)
    ]


def settings_of(job: Job) -> list[tuple[str, str]]:
    """What a run is trained with, by the names of widgets: model and data, and the options that are not at their defaults."""
    found = [(name, _shown(value)) for name, value in _about(job)]
    for _, group in job.groups():
        for item in options_of(type(group)):
            value = getattr(group, item.name)
            if value != item.default:
                found.append((item.label, _shown(_of_widget(item, value))))
    return found


def _settings(job: Job) -> Iterator[tuple[str, Any]]:
    yield from _about(job)
    for _, group in job.groups():
        for item in options_of(type(group)):
            yield item.label, _of_widget(item, getattr(group, item.name))


def _about(job: Job) -> Iterator[tuple[str, Any]]:
    yield "stage", job.stage
    yield "model", _Content(job.model.label, job.model.identity)
    yield "precision", job.model.precision
    samples = [[sample.latents_key, sample.text_key, sample.repeats] for sample in job.training_samples]
    yield "data", _Content(counted(len(samples), "sample"), digest(samples))
    yield "held out", counted(len(job.held_out_samples), "sample")


@dataclass(frozen=True)
class _Content:
    """What may differ although it is called the same."""

    shown: str
    content: str


def _of_widget(item: Option, value: Any) -> Any:
    if value is None:
        return AUTO
    return item.widget.shows(value) if item.widget else value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, _Content):
        return f"{value.shown} ({value.content[:6]})"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and any(kind(value).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
        return PureWindowsPath(value).name  # both kinds of slashes; where files lie is nobody's business
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
