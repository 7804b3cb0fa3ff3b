"""What is written of the options is what their declarations give, and follows when a declaration changes."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from wan_train.core.methods import method_names
from wan_train.core.recipe.documents import help_page, job_toml, options_json
from wan_train.core.recipe.recipe import Recipe, widgets_of
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.option import all_options, option, options_of

PACK = Path(__file__).resolve().parents[3]
PAGES = sorted((PACK / "web" / "docs").glob("*.md"))
(RANK,) = (item for item in options_of(AdapterOptions) if item.name == "rank")
FACTS = {f.name: getattr(RANK, f.name) for f in dataclasses.fields(RANK)}
FACTS = {name: value for name, value in FACTS.items() if name not in ("default", "group", "name", "annotation")}


@dataclass(frozen=True, kw_only=True)
class ChangedAdapter(AdapterOptions, group="adapter"):
    rank: int = option(77, **FACTS | {"help": "Changed in one place.", "most": 99})


@dataclass(frozen=True, kw_only=True)
class ChangedRecipe(Recipe):
    adapter: ChangedAdapter = field(default_factory=ChangedAdapter)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_files_are_as_the_declarations_make_them():
    """If one differs: python -m tools.documents, and look at what changed."""
    assert text_of(PACK / "docs" / "options.json") == options_json()
    assert text_of(PACK / "docs" / "job.toml") == job_toml()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_tables_of_help_pages_are_as_the_declarations_make_them(page):
    assert text_of(page) == help_page(text_of(page), page.stem)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_option_of_a_node_stands_once_on_its_page(page):
    tables = re.findall(r"<!-- options: .*?-->(.*?)<!-- end of options -->", text_of(page), re.DOTALL)
    rows = re.findall(r"^\| (\w+) \|", "".join(tables), re.MULTILINE)
    for item, _ in widgets_of(page.stem):
        assert rows.count(item.label) == 1, item.label


def test_the_list_of_options_is_whole():
    listed = json.loads(text_of(PACK / "docs" / "options.json"))
    assert listed.keys() == {item.place for item in all_options(Recipe)}
    assert listed["loop.token_budget"] | {"born": 2, "at_birth": 0} == listed["loop.token_budget"]


@pytest.mark.parametrize("item", [item for item in all_options(Recipe) if item.methods], ids=lambda item: item.place)
def test_what_can_be_chosen_are_the_methods_that_there_are(item):
    names = method_names(item.methods)
    assert set(item.choices) - {"auto"} == set(names or item.values) - {"auto"}


def test_a_changed_declaration_changes_all_that_is_made_of_it(comfy):
    from wan_train.nodes.widgets import widget_input

    page = text_of(PACK / "web" / "docs" / "TrainLoRAStage.md")
    made = {
        "toml": (job_toml(), job_toml(ChangedRecipe), "Changed in one place"),
        "list": (options_json(), options_json(ChangedRecipe), '"default": 77, "range": [1, 99]'),
        "page": (page, help_page(page, "TrainLoRAStage", ChangedRecipe), "| rank | Changed in one place."),
    }
    for name, (before, after, words) in made.items():
        assert words not in before, name
        assert words in after, name
        assert sum(one != other for one, other in zip(before.splitlines(), after.splitlines(), strict=True)) == 1, name
    inputs = [widget_input(*pair) for pair in widgets_of("TrainLoRAStage", ChangedRecipe) if pair[1].name == "rank"]
    assert [(item.default, item.tooltip.split(".")[0]) for item in inputs] == [(77, "Changed in one place")]
    assert ChangedAdapter().rank == 77
    with pytest.raises(ValueError, match="rank must be at most 99, got 100"):
        ChangedAdapter(rank=100)
