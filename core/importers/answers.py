"""What a file of another trainer says, option by option, and what becomes of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..paths import shown

# mapped: the same here. changed: done here, in another way or with another value. not needed: nothing has to be said for it
# here. not supported: it can't be done here, and the training will differ by it.
Outcome = Literal["mapped", "changed", "not needed", "not supported"]
OUTCOMES: tuple[Outcome, ...] = ("mapped", "changed", "not needed", "not supported")

Values = Mapping[
    str, Any
]  # places of a recipe ("adapter.rank", "dataset.width") to values; PREVIEW + name for a widget
FURTHER = "preview.further."  # further prompts, which the workflow keeps in a note
PREVIEW = "preview."  # of Preview LoRA in the workflow: "preview.prompt"; a recipe has no such place


@dataclass(frozen=True, kw_only=True)
class SetupOption:
    """One option of a file, or with `file` empty the default of a trainer, which no file says."""

    key: str  # the trainer's name for it, as declarations in core/settings have it: network_dim, train.lr
    name: str  # as it is written, with its place: --network_dim, config.process[0].train.lr
    value: Any
    file: str = ""
    dataset: int | None = None  # which of the setup's datasets it belongs to

    @property
    def shown(self) -> str:
        """The value, for a report."""
        return shown(self.value if isinstance(self.value, str) else _plain(self.value), 80)


@dataclass(frozen=True)
class Answer:
    """What becomes of an option."""

    outcome: Outcome
    values: Values = field(default_factory=dict)
    why: str = ""


def mapped(**values: Any) -> Answer:
    """The same here; `values` by place, with __ for the dot: adapter__rank=16."""
    return Answer("mapped", _places(values))


def changed(why: str, **values: Any) -> Answer:
    """Done here in another way, or with another value."""
    return Answer("changed", _places(values), why)


def not_needed(why: str) -> Answer:
    """Nothing has to be said for it here."""
    return Answer("not needed", {}, why)


def not_supported(why: str) -> Answer:
    """It can't be done here."""
    return Answer("not supported", {}, why)


def either(why: str, **values: Any) -> Answer:
    """`changed` where there is something to say, else `mapped`."""
    return changed(why, **values) if why else mapped(**values)


class Context:
    """The options of one training, for rules that depend on others: what was given, and else the trainer's defaults."""

    def __init__(self, given: list[SetupOption], facts: Mapping[str, Any] | None = None) -> None:
        self.given = given
        self.facts = dict(facts or {})  # what the importer has found out: the model's family, the stage
        self._by_key = {(item.key, item.dataset): item.value for item in given}

    def get(self, key: str, default: Any = None, dataset: int | None = None) -> Any:
        """The value of an option by its key; of a dataset's where there is one, else the whole setup's."""
        if dataset is not None and (key, dataset) in self._by_key:
            return self._by_key[key, dataset]
        return self._by_key.get((key, None), default)

    def has(self, key: str, dataset: int | None = None) -> bool:
        """Whether it is given, or has a default in the trainer."""
        return (key, dataset) in self._by_key


Rule = Callable[[Context, SetupOption], Answer]


def _places(values: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in values.items()}


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
