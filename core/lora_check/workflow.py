"""What a workflow does with a LoRA: which model it is put on, how strongly, and whether anything comes of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from ..adapters.named_expert import Expert, expert_of_name, is_for_both
from .file import Adapter, size_of
from .findings import Finding, Weight, is_distilled, on_distilled
from .graph import BYPASSED, Graph, Node, downstream, upstream

_MODEL_FILE = re.compile(r"\.(safetensors|gguf|sft|pt|pth|ckpt|bin)$", re.IGNORECASE)
_MUCH = 3.0
_DEEPEST = 3  # of lists in lists
_MODEL_NAMES = ("unet_name", "model_name", "ckpt_name", "model")
_SIZE = re.compile(r"(?<![\d.])(1[._]3|14|5)b(?![a-z])", re.IGNORECASE)
_KIND = re.compile(r"(?<![a-z])(t2v|i2v|flf2v)(?![a-z])", re.IGNORECASE)
_MAKERS = {  # nodes of this pack, which put no LoRA on a model
    "TrainLoRAStage", "PreviewLoRA", "WanLoRAFromFile", "WanMergeLoRAs", "WanChangeLoRA", "WanExtractLoRA", "WanFoldLoRA",
    "WanCheckLoRA", "WanCompareCheckpoints",
}  # fmt: skip
_SIZES = {"1.3": "1.3B", "1_3": "1.3B", "14": "14B", "5": "5B"}


@dataclass(frozen=True)
class Use:
    """One place where a workflow loads the LoRA."""

    node: Node
    strength: float | None
    is_on: bool
    model: str  # name of the model's file, "" where it can't be told

    @property
    def expert(self) -> Expert | None:
        """Which expert it is put on."""
        return expert_of_name(self.model) if self.model else None

    def __str__(self) -> str:
        strength = "unknown" if self.strength is None else f"{self.strength:g}"
        return f"node {self.node.key} ({self.node.kind}): strength {strength}, on {self.model or 'an unknown model'}"


def uses_of(graph: Graph, name: str) -> list[Use]:
    """Where the workflow loads the LoRA's file `name`, whatever folder it lies in."""
    return [
        Use(node, strength, is_on and not node.is_off, _model_of(graph, node))
        for node in graph.values()
        for value, strength, is_on in _loras(node)
        if _stem(value) == _stem(name)
    ]


def loads_loras(graph: Graph) -> bool:
    """Whether a workflow puts any LoRA on a model."""
    return any(True for node in graph.values() for _ in _loras(node))


def check_workflow(graph: Graph, file: Adapter) -> list[Finding]:
    """What keeps the LoRA from its effect in this workflow."""
    name = Path(file.path).name
    uses = uses_of(graph, name)
    if not uses:
        remedy = "Add Load LoRA (Model Only) between the model and the sampler, and choose the file there."
        return [Finding(Weight.NO_EFFECT, f"The workflow does not load {name}.", remedy)]
    at_work = [use for use in uses if use.is_on]
    if not at_work:
        state = "bypassed" if uses[0].node.mode == BYPASSED else "switched off"
        sentence = f"Node {uses[0].node.key} ({uses[0].node.kind}), which loads {name}, is {state}."
        return [Finding(Weight.NO_EFFECT, sentence, "Switch it on (Ctrl+B, or Ctrl+M).")]
    found = [finding for use in at_work for finding in (*_check_use(graph, use, file), *_check_kind(use, file))]
    return [*found, *_check_experts(at_work, file), *_check_distilled(graph, at_work, name)]


def _check_use(graph: Graph, use: Use, file: Adapter) -> Iterator[Finding]:
    where = f"node {use.node.key} ({use.node.kind})"
    if use.strength == 0:
        yield Finding(Weight.NO_EFFECT, f"The strength is 0 in {where}.", "Set it to 1.")
    elif use.strength is not None and abs(use.strength) < 0.2:
        yield Finding(Weight.HINT, f"The strength is {use.strength:g} in {where}, which is little.", "Try 1.")
    elif use.strength is not None and abs(use.strength) > _MUCH:
        sentence = f"The strength is {use.strength:g} in {where}, which is much: videos may break."
        yield Finding(Weight.HINT, sentence, "Try 1.")
    if not downstream(graph, use.node.key):
        sentence = f"Nothing is connected to the output of {where}, so that the LoRA is not used."
        yield Finding(
            Weight.NO_EFFECT, sentence, "It belongs on the way to the sampler, in the place of the plain model."
        )
    if use.expert and file.expert and use.expert != file.expert:
        sentence = f"The LoRA is for the {file.expert} noise expert, and {where} puts it on the {use.expert} noise one."
        yield Finding(
            Weight.WRONG, sentence, f"Load it on the {file.expert} noise model, and the other file of the pair here."
        )
    stated, size = _SIZE.search(use.model), size_of(file)
    if stated and size and _SIZES[stated[1].lower()] != size:
        sentence = f"The LoRA is for a {size} model, and {where} puts it on {use.model}: none of it fits."
        yield Finding(Weight.NO_EFFECT, sentence, f"Use a {size} model of the same family.")


def _check_kind(use: Use, file: Adapter) -> Iterator[Finding]:
    """Text-to-video beside image-to-video: it fits, but was learnt for the other."""
    stated, trained = _KIND.search(use.model), _KIND.search(file.architecture)
    if not stated or not trained:
        return
    kinds = [{"t2v": "text-to-video"}.get(found[1].lower(), "image-to-video") for found in (trained, stated)]
    if kinds[0] != kinds[1]:
        sentence = f"The LoRA was trained for {kinds[0]} ({file.architecture}), and {use.model} makes {kinds[1]}."
        yield Finding(Weight.HINT, sentence, "It works there in part: use the kind of model that it was trained on.")


def _check_experts(uses: list[Use], file: Adapter) -> list[Finding]:
    on = {use.expert for use in uses}
    if is_for_both(file.metadata):
        (*missing,) = {"high", "low"} - on
        if None in on or len(missing) != 1:
            return []
        sentence = f"The LoRA was trained through both experts, and the {missing[0]} noise one is not given it."
        return [Finding(Weight.HINT, sentence, "Load it on both models, at the same strength.")]
    if on != {"high", "low"} or file.expert:
        return []  # a file that says whose it is has been told of already
    sentence = "Both experts are given this one file."
    remedy = "Where the training made a pair (high_noise and low_noise), give each expert its own."
    return [Finding(Weight.HINT, sentence, remedy)]


def _check_distilled(graph: Graph, uses: list[Use], own: str) -> list[Finding]:
    names = [use.model for use in uses]
    for use in uses:
        chain = [use.node, *upstream(graph, use.node.key), *_after(graph, use.node)]
        names += [
            value
            for node in chain
            if not node.is_off
            for value, strength, is_on in _loras(node)
            if is_on and strength != 0
        ]
    fast = next((name for name in names if is_distilled(_stem(name)) and _stem(name) != _stem(own)), None)
    if fast is None:
        return []
    return [on_distilled(fast)]


def _after(graph: Graph, node: Node) -> Iterator[Node]:
    """The loaders of LoRAs that come behind a node."""
    seen, waiting = {node.key}, [node]
    while waiting:
        for found in downstream(graph, waiting.pop().key):
            if found.key not in seen and any(True for _ in _loras(found)):
                seen.add(found.key)
                waiting.append(found)
                yield found


def _loras(node: Node) -> Iterator[tuple[str, float | None, bool]]:
    """(file, strength, whether it is on) of each LoRA that a node loads."""
    if "lora" not in node.kind.lower() or node.kind in _MAKERS:
        return
    for table in _tables(node.loose):  # of rgthree's loader, and of LoRA Manager's
        name = table.get("lora", table.get("name") if "strength" in table else None)
        if isinstance(name, str):
            yield name, _number(table.get("strength")), bool(table.get("on", table.get("active", True)))
    for name, value in node.values.items():
        if isinstance(value, str) and _MODEL_FILE.search(value):
            number = re.search(r"\d+$", name)
            end = f"_{number[0]}" if number else ""
            strengths = [f"{start}{end}" for start in ("strength_model", "strength", "model_weight")]
            found = next((_number(node.values[key]) for key in strengths if key in node.values), None)
            yield value, found, node.values.get(f"switch{end}") not in ("Off", False)


def _tables(values: Any, deep: int = 0) -> Iterator[dict[str, Any]]:
    """The tables among values, also in lists, as LoRA Manager has them: {"__value__": [...]} for the API."""
    for value in values if isinstance(values, list) else ():
        if isinstance(value, dict):
            yield value
        inner = value.get("__value__") if isinstance(value, dict) else value
        if deep < _DEEPEST:
            yield from _tables(inner, deep + 1)


def _model_of(graph: Graph, node: Node) -> str:
    """The file of the model that the LoRA is put on: before the node, or, where LoRAs are given to a loader, behind it."""
    for other in (*upstream(graph, node.key), *downstream(graph, node.key)):
        for name in _MODEL_NAMES:
            value: Any = other.values.get(name)
            if isinstance(value, str) and _MODEL_FILE.search(value):
                return _base(value)
    return ""


def _base(name: str) -> str:
    return PureWindowsPath(name).name  # both kinds of slashes


def _stem(name: str) -> str:
    return _MODEL_FILE.sub("", _base(name))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
