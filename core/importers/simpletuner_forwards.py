"""What becomes of SimpleTuner's TREAD, CREPA and scheduled sampling."""

import re
from typing import Any

from ..routes import Route, write_routes
from .answers import Answer, Context, Rule, SetupOption, changed, mapped, not_needed, not_supported
from .common import is_off, need_number
from .declared import by_declaration, number, truth

_ROUTE = re.compile(r"tread_config\.routes\[(\d+)\]\.(selection_ratio|start_layer_idx|end_layer_idx)")
_ROLLOUT = "scheduled_sampling_"
_OFFSET, _RAMP = f"{_ROLLOUT}max_step_offset", f"{_ROLLOUT}ramp_steps"
_FOLDER = "it is fetched by its name there: download its folder from Hugging Face, and name it in crepa.encoder."


def tread(context: Context, given: SetupOption) -> Answer:
    """The first line of the table says all of it."""
    found: dict[int, dict[str, Any]] = {}
    lines = [item for item in context.given if item.key.startswith("tread_config.")]
    for item in lines:
        place = _ROUTE.fullmatch(item.key)
        if place is not None:
            found.setdefault(int(place[1]), {})[place[2]] = item.value
    if not _ROUTE.fullmatch(given.key):
        return not_supported("there is no such option of TREAD here.")
    if given is not next(item for item in lines if _ROUTE.fullmatch(item.key)):
        return mapped()
    try:
        routes = [
            Route(int(one["start_layer_idx"]), int(one["end_layer_idx"]), float(one["selection_ratio"]))
            for one in found.values()
        ]
    except (KeyError, TypeError, ValueError):
        return not_supported("a route needs start_layer_idx, end_layer_idx and selection_ratio.")
    if any(not 0 < route.left_out < 1 for route in routes):
        return not_supported("a route leaves out a share of the tokens between 0 and 1.")
    moved = [Route(max(route.first, 1), route.last, route.left_out) if route.first == 0 else route for route in routes]
    text = write_routes(moved)
    if moved != routes:
        return changed("the first block sees all tokens here.", tread__routes=text)
    return mapped(tread__routes=text)


def _of_crepa(inner: Rule) -> Rule:
    def rule(context: Context, given: SetupOption) -> Answer:
        if not truth(context.get("crepa_enabled", False)):
            return not_needed("it belongs to crepa_enabled, which is off.")
        return inner(context, given)

    return rule


def _crepa(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    source = str(context.get("crepa_feature_source", "encoder") or "encoder")
    own = truth(context.get("crepa_use_backbone_features", False)) or truth(context.get("crepa_self_flow", False))
    if own or source not in ("encoder", "external"):
        return not_supported("hidden states follow DINOv2 here, not another block of the model.")
    weight = float(need_number(context.get("crepa_lambda", 0.5)))
    return changed("name the folder of DINOv2 in crepa.encoder; the features are made once.", crepa__weight=weight)


def _declared(_context: Context, given: SetupOption) -> Answer:
    return by_declaration("simpletuner", given.key, given.value)


def _weight(_context: Context, _given: SetupOption) -> Answer:
    return mapped()  # by crepa_enabled


def _neighbours(_context: Context, given: SetupOption) -> Answer:
    return mapped(crepa__neighbours="all" if truth(given.value) else "exact")


def _only(value: Any, why: str) -> Rule:
    """An option that has one value here."""

    def rule(_context: Context, given: SetupOption) -> Answer:
        is_that = truth(given.value) == value if isinstance(value, bool) else str(given.value) == value
        return mapped() if is_that else not_supported(why)

    return rule


def _of_rollout(inner: Rule) -> Rule:
    def rule(context: Context, given: SetupOption) -> Answer:
        if not number(context.get(_OFFSET, 0)):
            return not_needed(f"it belongs to {_OFFSET}, which is 0.")
        return inner(context, given)

    return rule


def _offset(context: Context, given: SetupOption) -> Answer:
    """What nothing is said of has SimpleTuner's defaults: a probability of 0, ReflexFlow on with 10."""
    steps = need_number(given.value, is_whole=True)
    if steps <= 0:
        return not_needed("it is off.")
    ramp = number(context.get(_RAMP, 0)) or 0
    chance = context.get(f"{_ROLLOUT}probability", 0.0)
    if ramp:
        chance = context.get(f"{_ROLLOUT}prob_end", chance)
    values: dict[str, Any] = {"rollout__probability": float(need_number(chance))}
    if truth(context.get(f"{_ROLLOUT}reflexflow", True)):
        weight = context.get(f"{_ROLLOUT}reflexflow_beta1", 10.0)
        values["rollout__direction"] = float(need_number(weight))
    return mapped(rollout__steps=steps, **values)


def _ramp_start(_context: Context, given: SetupOption) -> Answer:
    return mapped() if is_off(given.value) else not_supported("a ramp begins at 0 here, with the run.")


def _told(_context: Context, _given: SetupOption) -> Answer:
    return mapped()  # by max_step_offset


def _no_effect(_context: Context, _given: SetupOption) -> Answer:
    return not_needed("it has no effect on flow matching there, either.")


FORWARD_RULES: dict[str, Rule] = {
    "crepa_enabled": _crepa,
    "crepa_lambda": _of_crepa(_weight),
    **dict.fromkeys(
        ("crepa_block_index", "crepa_adjacent_distance", "crepa_adjacent_tau", "crepa_encoder_image_size"),
        _of_crepa(_declared),
    ),
    "crepa_cumulative_neighbors": _of_crepa(_neighbours),
    **dict.fromkeys(("crepa_model", "crepa_encoder"), _of_crepa(lambda _context, _given: changed(_FOLDER))),
    **dict.fromkeys(
        ("crepa_drop_vae_encoder", "crepa_encoder_frames_batch_size", "crepa_use_tae"),
        _of_crepa(lambda _context, _given: not_needed("the features are made once, before the run.")),
    ),
    "crepa_normalize_by_frames": _of_crepa(_only(True, "the mean over frames is taken here.")),
    "crepa_spatial_align": _of_crepa(_only(True, "places are aligned here.")),
    "crepa_normalize_neighbour_sum": _of_crepa(_only(False, "neighbours are added here, and not averaged.")),
    "crepa_scheduler": _of_crepa(_only("constant", "the weight stays the same here.")),
    **dict.fromkeys(("crepa_feature_source", "crepa_use_backbone_features", "crepa_self_flow"), _of_crepa(_weight)),
    _OFFSET: _offset,
    **dict.fromkeys((f"{_ROLLOUT}probability", f"{_ROLLOUT}prob_end", f"{_ROLLOUT}reflexflow",
                     f"{_ROLLOUT}reflexflow_beta1"), _of_rollout(_told)),
    **dict.fromkeys((_RAMP, f"{_ROLLOUT}strategy"), _of_rollout(_declared)),
    f"{_ROLLOUT}prob_start": _of_rollout(_ramp_start),
    f"{_ROLLOUT}start_step": _of_rollout(_ramp_start),
    f"{_ROLLOUT}ramp_shape": _of_rollout(_only("linear", "the ramp is a straight line here.")),
    f"{_ROLLOUT}reflexflow_beta2": _of_rollout(_only("1.0", "the loss has the weight 1 here.")),
    **dict.fromkeys((f"{_ROLLOUT}sampler", f"{_ROLLOUT}order", f"{_ROLLOUT}reflexflow_alpha"), _of_rollout(_no_effect)),
}  # fmt: skip
