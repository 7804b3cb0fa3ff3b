"""What becomes of musubi-tuner's options of the network: its kind, its arguments, and LoRAs that it begins with."""

import ast
import re
from typing import Any

from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import is_off, need_number
from .declared import by_declaration, choice_of, truth

_LYCORIS = {"lora": "lora", "locon": "lora", "diag-oft": "oft"}  # names of lycoris.kohya that are not ours


def _kind_of(context: Context) -> str:
    """networks.lokr, or lycoris.kohya with algo=lokr."""
    word = str(context.get("network_module", "networks.lora_wan"))
    if word.startswith("lycoris"):
        algo = str(context.get("network_args.algo", "lora")).lower()
        return _LYCORIS.get(algo, algo)
    return "lora" if re.search(r"networks\.lora(_wan)?$", word) else word.rpartition(".")[2]


def _network(context: Context, given: SetupOption) -> Answer:
    word = _kind_of(context)
    if word == "lora":
        return mapped(adapter__kind="dora") if truth(context.get("network_args.dora_wd", False)) else mapped()
    kind = choice_of("adapter.kind", word)
    return (
        not_supported(f"{given.value} can't be trained here, a LoRA is.")
        if kind is None
        else mapped(adapter__kind=kind)
    )


def _dropout(context: Context, given: SetupOption) -> Answer:
    """networks/loha.py and lokr.py take it and never use it."""
    value = float(need_number(given.value))
    kind = _kind_of(context)
    if value and kind in ("loha", "lokr") and not str(context.get("network_module")).startswith("lycoris"):
        return not_needed(f"musubi-tuner leaves it out with {kind}.")
    return either("there of x A, here of x." if value else "", adapter__dropout=value)


def _of_a_lora(inner: str) -> Rule:
    """networks/lora.py looks for lora_up and lora_down by name, for LoRA+ as for the limit of norms: others have none."""

    def rule(context: Context, given: SetupOption) -> Answer:
        kind = _kind_of(context)
        if kind in ("loha", "lokr"):
            return not_needed(f"musubi-tuner does it for LoRAs alone, and leaves it out with {kind}.")
        return by_declaration("musubi", inner, given.value)

    return rule


def _factor(context: Context, given: SetupOption) -> Answer:
    """networks/lokr.py: -1 is what 0 is here."""
    if _kind_of(context) != "lokr":
        return not_needed("it is for lokr.")
    return mapped(adapter__lokr_factor=max(0, need_number(given.value, is_whole=True)))


def _full(context: Context, given: SetupOption) -> Answer:
    if _kind_of(context) != "lokr":
        return not_needed("it is for lokr.")
    return mapped(adapter__lokr_full=truth(given.value))


def _dora(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    kind = _kind_of(context)
    return mapped() if kind == "lora" else not_supported(f"lengths of columns are trained with LoRA alone, not {kind}.")


def _patterns(value: Any) -> list[str]:
    """A list, or its text as Python writes it: ['.*ffn.*']. None that is not a regular expression: musubi passes it over."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            value = [value]
    found = [str(each) for each in (value if isinstance(value, (list, tuple)) else [value])]
    return [pattern for pattern in found if _compiles(pattern)]


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return "\n" not in pattern


def _exclude(context: Context, given: SetupOption) -> Answer:
    """networks/lora.py: a whole name must fit; what is excluded and included stays in."""
    excluded = _patterns(given.value)
    included = _patterns(context.get("network_args.include_patterns", []))
    if not excluded:
        return not_needed("it has no pattern that can be read.")
    but = f"(?!(?:{'|'.join(f'(?:{each})' for each in included)})$)" if included else ""
    lines = [f"^{but}(?:{each})$" for each in excluded]
    return Answer("mapped", {"adapter.exclude": "\n".join(lines)})


def _include(context: Context, _given: SetupOption) -> Answer:
    if context.has("network_args.exclude_patterns"):
        return not_needed("what it brings back is left out of the patterns of exclude_patterns.")
    return not_needed("it brings back what exclude_patterns leaves out, and there are none.")


def _one_file(place: str) -> Rule:
    def rule(_context: Context, given: SetupOption) -> Answer:
        files = given.value if isinstance(given.value, list) else [given.value]
        if len(files) > 1:
            return not_supported("one file can be added to the base here: merge them into one before.")
        return not_needed("it is empty.") if not files or is_off(files[0]) else Answer("mapped", {place: str(files[0])})

    return rule


def _multiplier(context: Context, given: SetupOption) -> Answer:
    values = given.value if isinstance(given.value, list) else [given.value]
    if not context.has("base_weights") or len(values) != 1:
        return not_needed("it belongs to base_weights.")
    return mapped(adapter__merge_strength=float(need_number(values[0])))


def _rank_of_file(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    if not context.has("network_weights"):
        return not_needed("it belongs to network_weights.")
    return changed("the file is brought to network_dim here: set adapter.rank to its rank to keep it whole.")


NETWORK_RULES: dict[str, Rule] = {
    "network_module": _network,
    "network_dropout": _dropout,
    **{name: _of_a_lora(name) for name in ("network_args.loraplus_lr_ratio", "scale_weight_norms")},
    "network_args.factor": _factor,
    "network_args.algo": lambda _context, _given: not_needed("it is the kind of network_module."),
    "network_args.full_matrix": _full,
    "network_args.dora_wd": _dora,
    "network_args.exclude_patterns": _exclude,
    "network_args.include_patterns": _include,
    **dict.fromkeys(
        ("network_args.conv_dim", "network_args.conv_alpha"),
        lambda _context, _given: not_needed("the blocks of Wan have no convolutions."),
    ),
    "network_args.verbose": lambda _context, _given: not_needed("the layers are in the log."),
    "base_weights": _one_file("adapter.merge_into_base"),
    "base_weights_multiplier": _multiplier,
    "dim_from_weights": _rank_of_file,
}
