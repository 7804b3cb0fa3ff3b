"""From the files of a setup to a recipe, and what became of each option."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..paths import shown
from ..recipe.recipe import Recipe, recipe_from_tables
from ..serial import from_dict
from ..settings.stage import Stage
from ..train.start import check_methods
from . import aitoolkit, diffusion_pipe, musubi, simpletuner
from .answers import PREVIEW, Answer, Context, Rule, SetupOption, not_supported
from .declared import PEERS, by_declaration, declared, options_by_place
from .families import FAMILIES, Family
from .kinds import SetupKind, kind_of
from .reading import Reading, Training
from .tables import MappedValues, make_tables
from .texts import Parsed, SetupFile, check_sources, parse


@dataclass(frozen=True, kw_only=True)
class Line:
    """One option, and what became of it."""

    given: SetupOption
    answer: Answer
    stage: Stage | None = None  # of which expert's training, where each has its own


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A setup of another trainer, as this one would do it."""

    peer: str  # musubi
    family: Family
    tables: dict[str, Any]  # of the recipe
    recipe: Recipe  # with paths as the files have them
    lines: tuple[Line, ...]
    to_fill: tuple[str, ...]  # what the user has to do before it can be trained
    notes: tuple[str, ...] = ()
    preview: Mapping[str, Any] = field(default_factory=dict)  # widgets of Preview LoRA

    @property
    def trainer(self) -> str:
        """The other trainer's name."""
        return PEERS[self.peer]

    @property
    def given(self) -> tuple[Line, ...]:
        """The options that the files hold."""
        return tuple(line for line in self.lines if line.given.file)

    @property
    def assumed(self) -> tuple[Line, ...]:
        """What no file says, and the other trainer takes for it, where it is not what this one takes."""
        return tuple(line for line in self.lines if not line.given.file)


@dataclass(frozen=True)
class Peer:
    """How the files of one trainer are read."""

    read: Callable[[Mapping[SetupKind, list[Parsed]]], Reading]
    rules: Mapping[str, Rule]  # where a name does not mean the same, or stands for several options
    rest: Mapping[str, Rule]  # what has no option here: why that does not matter, or does


READERS = {
    "musubi": Peer(musubi.read, musubi.RULES, musubi.REST),
    "aitoolkit": Peer(aitoolkit.read, aitoolkit.RULES, aitoolkit.REST),
    "simpletuner": Peer(simpletuner.read, simpletuner.RULES, simpletuner.REST),
    "diffusion_pipe": Peer(diffusion_pipe.read, diffusion_pipe.RULES, diffusion_pipe.REST),
}


def import_setup(sources: Sequence[SetupFile]) -> Imported:
    """Read the files of one setup. Paths in the recipe stay as they are written.

    ConfigError for files that are damaged, of no trainer that is known, of several trainers, or not of Wan.
    """
    check_sources(sources)
    peer, by_kind = _sorted_by_kind([parse(source) for source in sources])
    reading = READERS[peer].read(by_kind)
    family = FAMILIES.get(reading.family)
    if family is None:
        raise ConfigError(reading.family_problem or "the files do not say which Wan model they train.")
    facts = {"family": reading.family, "has_experts": family.has_experts, "fps": family.fps}
    draft = MappedValues(family=family, num_datasets=reading.num_datasets, stages=[t.stage for t in reading.trainings])
    lines: list[Line] = []
    for index, training in enumerate(reading.trainings or [Training([])]):
        context = Context([*reading.shared, *training.given], {**facts, **training.facts, "stage": training.stage})
        for given in reading.shared if index == 0 else []:
            lines.append(Line(given=given, answer=(answer := _answer(peer, context, given))))
            draft.take(None, given, answer)
        stage = training.stage if len(draft.stages) > 1 else None
        for given in training.given:
            lines.append(Line(given=given, answer=(answer := _answer(peer, context, given)), stage=stage))
            draft.take(index, given, answer)
    tables, to_fill, notes = make_tables(draft)
    try:
        recipe_from_tables(tables, Path.cwd(), "the recipe made from your files")
        sources = tables["dataset"] if isinstance(tables["dataset"], list) else [tables["dataset"]]
        recipe = from_dict(Recipe, {**tables, "dataset": sources})
    except ConfigError as error:
        raise ConfigError(f"your {PEERS[peer]} setup was read, but it can't be trained as it is: {error}") from error
    preview = {place.removeprefix(PREVIEW): value for place, value in draft.preview.items()}
    return Imported(
        peer=peer,
        family=family,
        tables=tables,
        recipe=recipe,
        lines=tuple(lines),
        to_fill=(*to_fill, *_refusals(recipe)),
        notes=(*reading.notes, *notes, *_warnings(recipe)),
        preview=preview,
    )


def _answer(peer: str, context: Context, given: SetupOption) -> Answer:
    """By a rule of its own, else by a declaration with its name, else by what is known of those that have no option here."""
    reader = READERS[peer]
    rule = reader.rules.get(given.key)
    if rule is None and not declared(peer, given.key):
        table = f"{given.key.rpartition('.')[0]}.*"
        of_all = re.sub(r"\[\d+\]", "", table)  # of a list of tables, each alike
        first = re.split(r"[.\[]", given.key)[0] + ".*"
        rule = (
            reader.rest.get(given.key) or reader.rules.get(table) or reader.rest.get(of_all) or reader.rest.get(first)
        )
    try:
        answer = rule(context, given) if rule else by_declaration(peer, given.key, given.value)
        for place, value in answer.values.items():
            if (item := options_by_place().get(place)) is not None:
                item.check(value)
    except ConfigError as error:
        return not_supported(str(error))
    return answer


def _sorted_by_kind(files: Sequence[Parsed]) -> tuple[str, dict[SetupKind, list[Parsed]]]:
    found: dict[SetupKind, list[Parsed]] = {}
    for file in files:
        kind = kind_of(file)
        if kind is None:
            known = ", ".join(PEERS.values())
            raise ConfigError(f"{shown(file.name)} is no setup of a trainer that is known ({known}).")
        found.setdefault(kind, []).append(file)
    peers = {kind.split()[0]: files for kind, files in found.items()}
    if len(peers) > 1:
        named = " and ".join(f"{shown(files[0].name)} ({PEERS[peer]})" for peer, files in peers.items())
        raise ConfigError(f"the files are of several trainers, {named}: bring one setup at a time.")
    return next(iter(peers)), found


def _refusals(recipe: Recipe) -> list[str]:
    """Methods that the other trainer takes together, and that a run would refuse."""
    found: list[str] = []
    for stage in recipe.runs:
        try:
            check_methods(recipe.settings(stage))
        except ConfigError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _warnings(recipe: Recipe) -> list[str]:
    found: list[str] = []
    for stage in recipe.runs:
        found += recipe.settings(stage).warnings(stage)
    return list(dict.fromkeys(found))
