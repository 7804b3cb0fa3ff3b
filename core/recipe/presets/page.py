"""The text of docs/recipes.md: every preset, what it takes, and where its numbers come from."""

from collections.abc import Iterator
from typing import Any

from ...settings.dataset_frames import sizes_of
from . import PRESETS
from .fits import CARDS, GIB, RAM_GB, fit
from .preset import Preset

_HEAD = """\
# Recipes

A recipe is a set of values that has proved itself. In the graph press **Recipes** on the training node: it shows
what each would change, and puts the values into the widgets of dataset, model and training. What you change after
that stays. A recipe is for one model, and is not put into a workflow that trains another. On the command line:

```
wantrain run                                  # asks which
wantrain run --recipe character ...           # a character, for the GPU that is there
wantrain run --recipe motion-48gb --write job.toml ...
```

Sizes, frames, precision and rank are for the memory of the GPU. The rest, such as block swap, is chosen by
each run's plan.

## What they take

The planner of every run predicts these, for clips of the full size, with the rates of the data sheets. They are not measured,
and real cards differ. Hours are for both experts of Wan 2.2, one after the other. With two GPUs both train at once.
"""
_SOURCES = """
## Where the numbers come from

Numbers such as *6.1* are sections of the guide to
[Wan 2.2 T2V with AI-Toolkit](https://www.runcomfy.com/trainer/ai-toolkit/wan-2-2-t2v-14b-lora-training). It counts the
steps of both experts, which are two runs here: each has half. `wan2.2-t2v-images` is
[AI_Characters' guide](https://civitai.com/articles/17740) to musubi-tuner, `simpletuner-quickstart` SimpleTuner's quick
start for Wan 2.1. [guides](guides.md) goes through all three line by line.
"""


def recipes_page() -> str:
    """The page."""
    return "\n".join([_HEAD.rstrip(), "", *_costs(), _SOURCES.rstrip(), *_sources()]) + "\n"


def _costs() -> Iterator[str]:
    yield "| Recipe | GPU | Clips | Precision | GPU memory | Main memory | A step | Whole training |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, chosen in PRESETS.items():
        for card_gb in [chosen.card_gb] if chosen.card_gb else list(CARDS):
            yield f"| `{name}` | {_cost(chosen, card_gb)} |"


def _cost(chosen: Preset, card_gb: int) -> str:
    found = fit(chosen, card_gb)
    assert found.choice is not None, f"{chosen.title} does not fit {found.card.name}"
    options, choice = chosen.dataset_options(), found.choice
    sizes = " and ".join(f"{width}x{height}" for width, height in sizes_of(options))
    frames = "pictures" if options.num_frames == 1 or chosen.kind == "images" else f"{options.num_frames} frames"
    whole = "as long as you like" if chosen.kind == "quickstart" else f"{found.hours:.1f} h"
    cells = [
        f"{found.card.name}, {RAM_GB[card_gb]} GB of main memory",
        f"{sizes}, {frames}",
        str(chosen.model["precision"]),
        f"{choice.vram / GIB:.0f} GB",
        f"{choice.ram / GIB:.0f} GB",
        f"{choice.seconds:.1f} s" if choice.seconds < 10 else f"{choice.seconds:.0f} s",
        "100 epochs" if chosen.epochs else whole,
    ]
    return " | ".join(cells)


def _sources() -> Iterator[str]:
    """Each preset's values with where they come from; the presets of a kind share one table."""
    told: set[str] = set()
    for chosen in PRESETS.values():
        if chosen.kind in told:
            continue
        told.add(chosen.kind)
        family = [other for other in PRESETS.values() if other.kind == chosen.kind]
        yield from [
            "",
            f"### {chosen.title.rpartition(',')[0] if len(family) > 1 else chosen.title}",
            "",
            chosen.description,
        ]
        if chosen.asks:
            yield f"You give: {chosen.asks}."
        yield from ["", "| Setting | Value | Where it comes from |", "|---|---|---|"]
        for label in dict.fromkeys(label for one in family for label in one.why):
            yield from _rows(label, family)


def _rows(label: str, family: list[Preset]) -> Iterator[str]:
    cards: dict[tuple[Any, str], list[str]] = {}
    for one in family:
        if label in one.why:
            value = next(values[label] for values in one.values().values() if label in values)
            cards.setdefault((value, one.why[label]), []).append(f"{one.card_gb} GB")
    for (value, why), on in cards.items():
        shown = f"`{'on' if value is True else 'off' if value is False else value}`"
        where = f" ({', '.join(on)})" if len(on) < len(family) else ""
        yield f"| {label} | {shown}{where} | {why} |"
