"""What becomes of a file for LyCORIS (lycoris_config.json), with which SimpleTuner trains other kinds of adapters.

Its keys are `lycoris.` and the place in the file: lycoris.algo, lycoris.apply_preset.target_module.
"""

from typing import Any

from ..settings.adapter import MOST_RANK
from .answers import Answer, Context, Rule, SetupOption, changed, mapped, not_needed, not_supported
from .common import is_off, need_number
from .declared import by_declaration, choice_of, truth
from .layers import layers_with

# The names of LyCORIS where they are not ours. lycoris/config.py, network_module_dict
_ALGOS = {"lora": "lora", "locon": "lora", "diag-oft": "oft", "oft": "oft"}
_WHOLE = {"Attention": ("self_attn", "cross_attn"), "FeedForward": ("ffn",)}
_CLASSES = {**_WHOLE, "WanAttention": _WHOLE["Attention"], "WanTransformerBlock": ("self_attn", "cross_attn", "ffn")}


def has_lycoris(context: Context) -> bool:
    """Whether the adapter is described by a file of LyCORIS, and not by the lora_ options."""
    return context.get("lora_type") == "lycoris" and context.has("lycoris.algo")


def lycoris_goes_first(rule: Rule | None = None) -> Rule:
    """A rule for an option of plain LoRAs, which has no effect beside a file of LyCORIS."""

    def decide(context: Context, given: SetupOption) -> Answer:
        if has_lycoris(context):
            return not_needed("lora_type is lycoris, whose own file says it.")
        return rule(context, given) if rule else by_declaration("simpletuner", given.key, given.value)

    return decide


def lora_type(context: Context, given: SetupOption) -> Answer:
    """standard, or lycoris: its file says which kind."""
    if given.value == "standard":
        return mapped()
    if has_lycoris(context):
        return mapped()
    return not_supported("bring the file of lycoris_config too (lycoris_config.json): without it a LoRA is trained.")


def use_dora(context: Context, given: SetupOption) -> Answer:
    """helpers/training/adapter.py: peft's DoRA, on a LoRA of lora_type standard."""
    if not truth(given.value) or has_lycoris(context):
        return not_needed("it is off." if not truth(given.value) else "lora_type is lycoris, whose own file says it.")
    return changed(
        "lengths of columns are trained here, which ComfyUI reads; there those of rows.", adapter__kind="dora"
    )


def _algo(context: Context) -> str:
    return str(context.get("lycoris.algo", "lora")).lower()


def _kind(context: Context, given: SetupOption) -> Answer:
    word = _algo(context)
    kind = choice_of("adapter.kind", _ALGOS.get(word, word))
    if kind is None:
        return not_supported(f"there is no {given.value} here, a LoRA is trained.")
    if kind == "lora" and any(truth(context.get(f"lycoris.{name}", False)) for name in ("weight_decompose", "dora_wd")):
        return mapped(adapter__kind="dora")
    if kind == "tlora":
        return changed(
            "ranks follow the noise within the stage's own window here, and a preview has all of them, as ComfyUI does.",
            adapter__kind="tlora",
        )
    return mapped(adapter__kind=kind)


def _multiplier(_context: Context, given: SetupOption) -> Answer:
    if float(need_number(given.value)) == 1.0:
        return not_needed("it is 1.")
    return not_supported("the strength while training is alpha / rank alone: set adapter.alpha so many times higher.")


def _rank(context: Context, given: SetupOption) -> Answer:
    rank = need_number(given.value, is_whole=True)
    if _algo(context) == "lokr" and rank > MOST_RANK:  # SimpleTuner's guide has 10000: larger than any factor
        return changed("so large a rank means whole matrices, which is lokr_full.", adapter__lokr_full=True)
    return mapped(adapter__rank=rank)


def _alpha(context: Context, given: SetupOption) -> Answer:
    whole = truth(context.get("lycoris.full_matrix", False)) or _rank_is_large(context)
    if _algo(context) == "lokr" and whole:
        return not_needed("whole matrices have no alpha.")
    if _algo(context) in ("diag-oft", "oft"):
        return not_needed("OFT has no alpha.")
    return mapped(adapter__alpha=float(need_number(given.value)))


def _rank_is_large(context: Context) -> bool:
    return float(need_number(context.get("lycoris.linear_dim", 4))) > MOST_RANK


def _factor(context: Context, given: SetupOption) -> Answer:
    if _algo(context) != "lokr":
        return not_needed("it is for lokr.")
    return mapped(adapter__lokr_factor=max(0, need_number(given.value, is_whole=True)))


def _full(context: Context, given: SetupOption) -> Answer:
    if _algo(context) != "lokr":
        return not_needed("it is for lokr.")
    return mapped(adapter__lokr_full=truth(given.value))


def _dora(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    is_lora = choice_of("adapter.kind", _ALGOS.get(_algo(context), _algo(context))) == "lora"
    return (
        mapped() if is_lora else not_supported(f"lengths of columns are trained with LoRA alone, not {_algo(context)}.")
    )


def _number(place: str) -> Rule:
    def rule(_context: Context, given: SetupOption) -> Answer:
        return Answer("mapped", {place: float(need_number(given.value))})

    return rule


def _least(context: Context, given: SetupOption) -> Answer:
    if _algo(context) != "tlora":
        return not_needed("it is for tlora.")
    return mapped(adapter__tlora_min_rank=need_number(given.value, is_whole=True))


def _power(context: Context, given: SetupOption) -> Answer:
    if _algo(context) != "tlora":
        return not_needed("it is for tlora.")
    return mapped(adapter__tlora_power=float(need_number(given.value)))


def _modules(_context: Context, given: SetupOption) -> Answer:
    """Classes of diffusers' model, or names of modules."""
    words = [str(each) for each in (given.value if isinstance(given.value, list) else [given.value])]
    parts = [part for word in words for part in _CLASSES.get(word, ())]
    named = layers_with([word for word in words if word not in _CLASSES])
    if named.unknown or (named.patterns and not named.parts):
        return not_supported(
            f"{', '.join(named.unknown or named.patterns)} is no class of layers here: set adapter.targets and adapter.include."
        )
    chosen = [part for part in _WHOLE["Attention"] + _WHOLE["FeedForward"] if part in {*parts, *named.parts}]
    return mapped(adapter__targets=chosen) if chosen else not_needed("it is empty.")


def _of_class(context: Context, given: SetupOption) -> Answer:
    """apply_preset.module_algo_map.CLASS.OPTION: another value for one class of layers."""
    _, _, place = given.key.rpartition("module_algo_map.")
    _, _, name = place.partition(".")
    if context.get(f"lycoris.{name}") == given.value:
        return not_needed(f"it is {name} of all.")
    return not_supported(f"all layers have one {name} here.")


def _off(why: str) -> Rule:
    def rule(_context: Context, given: SetupOption) -> Answer:
        return not_needed("it is off.") if is_off(given.value) else not_supported(why)

    return rule


def _needless(why: str) -> Rule:
    return lambda _context, _given: not_needed(why)


def without_file(rules: dict[str, Rule]) -> dict[str, Rule]:
    """Rules that have a say where lora_type is lycoris alone."""

    def only(rule: Rule) -> Rule:
        def decide(context: Context, given: SetupOption) -> Answer:
            if context.get("lora_type", "lycoris") != "lycoris":
                return not_needed("lora_type is not lycoris.")
            return rule(context, given)

        return decide

    return {key: only(rule) for key, rule in rules.items()}


def _rules() -> dict[str, Any]:
    tucker = "Tucker factors are for convolutions, which the blocks of Wan have none of."
    return {
        "algo": _kind,
        "multiplier": _multiplier,
        "linear_dim": _rank,
        "linear_alpha": _alpha,
        "factor": _factor,
        "full_matrix": _full,
        **dict.fromkeys(("weight_decompose", "dora_wd"), _dora),
        "dropout": _number("adapter.dropout"),
        "rank_dropout": _number("adapter.rank_dropout"),
        "module_dropout": _number("adapter.module_dropout"),
        "rs_lora": lambda _context, given: mapped(adapter__rslora=truth(given.value)),
        "tlora_min_rank": _least,
        "tlora_alpha": _power,
        "apply_preset.target_module": _modules,
        **{f"apply_preset.module_algo_map.{name}.*": _of_class for name in _CLASSES},
        "apply_preset.target_name": _off("names with wildcards are not read here: set adapter.include."),
        "apply_preset.lora_prefix": _needless("keys have the names that ComfyUI reads."),
        "bypass_mode": _needless("quantized bases are always trained so."),
        **dict.fromkeys(("use_tucker", "use_cp", "conv_dim", "conv_alpha"), _needless(tucker)),
        "use_scalar": _off("there is no such factor here, and ComfyUI reads none."),
        "decompose_both": _off("the first matrix of a LoKr is whole here."),
        "rank_dropout_scale": _off("what is left counts 1 / (1 - rank_dropout) here."),
        "rescaled": _off("ComfyUI leaves the rescale of OFT out."),
        "constraint": _off("it grows with the width of the layer there: set adapter.oft_constraint."),
        "unbalanced_factorization": _off("widths are divided as ComfyUI does it."),
    }


LYCORIS_RULES: dict[str, Rule] = without_file({f"lycoris.{name}": rule for name, rule in _rules().items()})
