"""What two runs were trained with that is not the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..serial import digest, to_dict
from ..settings.job import Job


@dataclass(frozen=True)
class Difference:
    """A setting of two runs, as `group.option`, with its value in each."""

    name: str
    one: Any
    other: Any


def differences(one: Job, other: Job) -> list[Difference]:
    """All settings in which the runs differ, in the order of the job's fields. Of the data: how much it is, and whether it is
    the same."""
    first, second = _flat(one), _flat(other)
    names = dict.fromkeys([*first, *second])
    return [
        Difference(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)
    ]


def _flat(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {"name": job.name, "stage": job.stage}
    found |= {f"model.{name}": getattr(job.model, name) for name in ("label", "identity", "precision")}
    found |= _data(job)
    found |= {"trigger_word": job.trigger_word, "device": job.device}
    for group, options in job.groups():
        values: Mapping[str, Any] = to_dict(options)
        found |= {f"{group}.{name}": value for name, value in values.items()}
    return found


def _data(job: Job) -> dict[str, Any]:
    data = job.data
    content = [[s.latents_key, s.text_key, s.repeats, s.held_out] for s in data.samples]
    return {
        "data.samples": len(job.training_samples),
        "data.held_out": len(job.held_out_samples),
        "data.content": digest(content)[:12],
        "data.conditioning": data.conditioning,
        "data.fps": data.fps,
    }
