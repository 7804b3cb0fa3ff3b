"""What is written down of the options, made from their declarations: docs/job.toml, docs/options.json, help pages.

`python -m tools.documents` writes them, and a test holds them against what this makes.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from ..serial import AUTO, to_dict
from ..settings.option import UNSET, Option, Widget, all_options, groups_of, options_of
from ..settings.stage import StageSettings
from .presets import preset
from .recipe import Recipe, widgets_of

_PRESET = "wan2.2-t2v-images"  # docs/job.toml as it stands
_EXAMPLE: dict[str, Any] = {
    "name": "my_lora",
    "dataset": {"folder": "dataset"},
    "models": {
        "high": "models/diffusion_models/wan2.2_t2v_high_noise_14B_fp16.safetensors",
        "low": "models/diffusion_models/wan2.2_t2v_low_noise_14B_fp16.safetensors",
        "vae": "models/vae/wan_2.1_vae.safetensors",
        "text_encoder": "models/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    },
}
_HEADER = """\
# A training in one file, for: wantrain train job.toml
# As it stands it is AI_Characters' recipe for Wan 2.2 T2V A14B. Lines with # show the other settings with their defaults.
# Its model files are those of: wantrain download t2v-a14b-fp16 --to models (64 GB; t2v-a14b has the fp8 files, 36 GB)
# Paths are relative to this file. Unknown names are refused. "auto" leaves a value to the program: in [memory] to its plan.
# Made from the declarations of the options by: python -m tools.documents
"""
_EXPERTS = """
# What differs for one expert stands in [high...] and [low...], with the same groups:
#[low.optimizer]
#learning_rate = 2e-4
"""
_DATASETS = """
# Several datasets in one run: write [[dataset]] in place of [dataset], once for each, with its own folder and settings.
# A change from the command line says which by its number: dataset.2.repeats=3
"""
_WIDTH, _COLUMN = 120, 28
_TABLE = re.compile(r"<!-- options: ([\w ]+) -->\n.*?<!-- end of options -->", re.DOTALL)


def job_toml(recipe: type[Recipe] = Recipe) -> str:
    """The text of docs/job.toml: every option that a recipe has."""
    tables = _example()
    lines = [_HEADER, *_lines(_own_options(recipe), tables)]
    for name, group in _groups(recipe):
        if name == "lora":
            lines.append(_EXPERTS.rstrip())
        if name == "dataset":
            lines.append(_DATASETS.rstrip())
        lines += [*([] if name == "dataset" else [""]), f"[{name}]", *_lines(options_of(group), tables.get(name, {}))]
    return "\n".join(lines) + "\n"


def options_json(recipe: type[Recipe] = Recipe) -> str:
    """The text of docs/options.json: all options, so that what is new or changed is seen in review."""
    found = {item.place: _facts(item) for item in sorted(all_options(recipe), key=lambda item: item.place)}
    lines = [f"{json.dumps(place)}: {json.dumps(facts, ensure_ascii=False)}" for place, facts in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def help_page(text: str, node: str, recipe: type[Recipe] = Recipe) -> str:
    """The text of a node's help page with its tables of options made anew."""
    named = {word for words in _TABLE.findall(text) for word in words.split()}

    def table(match: re.Match[str]) -> str:
        rows = [row(item) for item in _chosen(widgets_of(node, recipe), match[1].split(), named)]
        body = "\n".join(["| Input | Meaning |", "|---|---|", *rows])
        return f"<!-- options: {match[1]} -->\n{body}\n<!-- end of options -->"

    return _TABLE.sub(table, text)


def row(item: Option) -> str:
    """The line of a help page's table."""
    text = f"{item.tooltip} {item.page}".strip().replace("|", "\\|")
    return f"| {item.label} | {text} |"


def _chosen(shown: list[tuple[Option, Widget]], words: list[str], named: set[str]) -> Iterator[Option]:
    """Options of a node for one of its tables: by name, by group where the page does not name them, or all `main` ones."""
    for item, widget in shown:
        is_main = not widget.advanced
        is_elsewhere = item.label in named or (is_main and "main" in named)
        if item.label in words or (is_main and "main" in words) or (item.group in words and not is_elsewhere):
            yield item


def _example() -> dict[str, Any]:
    """The tables of docs/job.toml."""
    chosen = preset(_PRESET)
    tables = {**_EXAMPLE, **chosen.tables()}
    tables["dataset"] = {**_EXAMPLE["dataset"], **tables["dataset"]}
    tables["lora"] = {stage: name.format(name=tables["name"]) for stage, name in chosen.lora_names.items()}
    return tables


def _own_options(recipe: type[Recipe]) -> list[Option]:
    """Those that stand in no group: of the recipe, then of its training."""
    shared = {item.name for item in options_of(StageSettings)}
    return sorted(options_of(recipe), key=lambda item: item.name in shared)


def _groups(recipe: type[Recipe]) -> list[tuple[str, type]]:
    """What is read in, what is trained, what comes out."""
    shared = groups_of(StageSettings)
    return sorted(groups_of(recipe).items(), key=lambda item: 2 if item[0] == "lora" else item[0] in shared)


def _lines(options: Iterable[Option], values: dict[str, Any]) -> Iterator[str]:
    for item in sorted(options, key=lambda item: item.default is not UNSET):  # first what must be given
        if not item.in_recipe:
            continue
        is_live = values.get(item.name) is not None
        value = _toml(values[item.name] if is_live else item.default)
        text = f"{'' if is_live else '#'}{item.name} = {value}"
        comment = _comment(item)
        line = f"{text:<{_COLUMN - 1}} # {comment}"
        if len(line) <= _WIDTH:
            yield line
        else:
            yield from (f"# {part}" for part in textwrap.wrap(comment, _WIDTH - 2))
            yield text


def _comment(item: Option) -> str:
    choices = f" One of: {', '.join(map(str, item.choices))}." if item.choices else ""
    zero = f" 0: {item.zero}." if item.zero else ""
    return f"{item.help}{choices}{zero}".removesuffix(".")


def _toml(value: Any) -> str:
    if value is None:
        return f'"{AUTO}"'
    return json.dumps(to_dict(value), ensure_ascii=False)


def _facts(item: Option) -> dict[str, Any]:
    facts: dict[str, Any] = {"default": "(must be given)" if item.default is UNSET else to_dict(item.default)}
    if item.is_number:
        low, high = item.range
        facts["range"] = [low, high]
        facts |= {"unit": item.unit} if item.unit else {}
    if item.choices:
        facts["choices"] = list(item.choices)
    facts["born"] = item.born
    if item.at_birth is not UNSET:
        facts["at_birth"] = to_dict(item.at_birth)
    facts["in_key"] = item.in_key
    if item.widget:
        facts["widget"] = f"{item.widget.node}.{item.widget.name} ({item.widget.place})"
    others = ("musubi", "aitoolkit", "simpletuner", "diffusion_pipe")
    return facts | {name: getattr(item, name) for name in others if getattr(item, name)}
