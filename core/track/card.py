"""The model card of a LoRA on Hugging Face, from what the file says of itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .run_facts import RunFacts

MARK = "<!-- made by wantrain push: take this line out, and the card is left as it is -->"
# What a LoRA says that it was trained on -> the model's page.
_BASES = {
    "wan2.1-t2v-1.3b": "Wan-AI/Wan2.1-T2V-1.3B",
    "wan2.1-t2v-14b": "Wan-AI/Wan2.1-T2V-14B",
    "wan2.1-i2v-14b": "Wan-AI/Wan2.1-I2V-14B-720P",
    "wan2.2-t2v-a14b": "Wan-AI/Wan2.2-T2V-A14B",
    "wan2.2-i2v-a14b": "Wan-AI/Wan2.2-I2V-A14B",
    "wan2.2-ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B",
}
_SHOWN = (
    ("rank", "ss_network_dim"),
    ("alpha", "ss_network_alpha"),
    ("learning rate", "ss_learning_rate"),
    ("optimizer", "ss_optimizer"),
    ("schedule", "ss_lr_scheduler"),
    ("steps", "ss_steps"),
    ("batch size", "ss_batch_size_per_device"),
    ("seed", "ss_seed"),
)


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A file of the repository: a LoRA with its metadata, and the run that it came of, where that is there."""

    name: str  # in the repository
    metadata: Mapping[str, str]
    run: RunFacts | None = None
    previews: Sequence[str] = field(default_factory=tuple[str, ...])  # in the repository


def model_card(title: str, files: Sequence[Uploaded]) -> str:
    """The text of README.md. Captions and paths are not in it."""
    metadata = files[0].metadata
    base = metadata.get("ss_base_model_version", "")
    trigger = metadata.get("modelspec.trigger_phrase", "")
    head = ["---", "tags:", "- lora", "- wan", f"- {_task(base)}", f"pipeline_tag: {_task(base)}"]
    head += [f"base_model: {_BASES[base]}", "base_model_relation: adapter"] if base in _BASES else []
    head += [f"instance_prompt: {json.dumps(trigger, ensure_ascii=False)}"] if trigger else []
    body = [f"# {title}", "", f"A LoRA for {_BASES.get(base, base or 'Wan')}, trained with ComfyUI-WanTrain."]
    if trigger:
        body += ["", f"Trigger word: `{trigger}`"]
    author = metadata.get("modelspec.author", "")
    body += ["", f"Author: {author}"] if author else []
    body += [
        "",
        "## Files",
        "",
        "| File | For |",
        "|---|---|",
        *(f"| `{file.name}` | {_use(file)} |" for file in files),
    ]
    body += ["", "Put them into `ComfyUI/models/loras`, and load each with **Load LoRA** on the model that it is for."]
    shown = [preview for file in files for preview in file.previews]
    if shown:
        body += ["", "## Previews", "", *(f"![{Path(preview).stem}]({preview})" for preview in shown)]
    body += ["", "## Training", "", *_settings(files)]
    return "\n".join([*head, "---", MARK, "", *body]) + "\n"


def _task(base: str) -> str:
    return "image-to-video" if "i2v" in base and "ti2v" not in base else "text-to-video"


def _use(file: Uploaded) -> str:
    name = file.name.lower()
    return next((f"the {word} noise model" for word in ("high", "low") if word in name), "the model")


def _settings(files: Sequence[Uploaded]) -> list[str]:
    names = [file.name for file in files]
    rows: list[str] = [f"| | {' | '.join(f'`{name}`' for name in names)} |", f"|---|{'---|' * len(names)}"]
    for label, key in _SHOWN:
        values = [str(file.metadata.get(key, "")) for file in files]
        if any(values):
            rows.append(f"| {label} | {' | '.join(values)} |")
    levels = [_of_run(file, "timesteps.sampling") for file in files]
    return [*rows, f"| timestep sampling | {' | '.join(levels)} |"] if any(levels) else rows


def _of_run(file: Uploaded, name: str) -> str:
    value: Any = file.run.settings.get(name, "") if file.run else ""
    return str(value)
