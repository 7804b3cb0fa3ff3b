"""What becomes of the dataset options of AI-Toolkit."""

from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    loss_weight,
    need_number,
    repeats,
)
from .declared import choice_of, exists, frames, number, truth
from .sizes import sizes


def _resolution(_context: Context, given: SetupOption) -> Answer:
    """Sides of squares, whose area is what counts; the same files at each (toolkit/buckets.py). Nothing is scaled up."""
    values = given.value if isinstance(given.value, list) else [given.value]
    answer = sizes(values)
    return Answer(answer.outcome, {**answer.values, "dataset.upscale": False}, answer.why)


def _buckets(_context: Context, given: SetupOption) -> Answer:
    return mapped(dataset__aspect_buckets=truth(given.value))


def _frames(_context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value, is_whole=True)
    kept = frames(found)
    return either("" if kept == found else "Wan takes 4n+1 frames.", dataset__num_frames=kept)


def _shrink(context: Context, given: SetupOption) -> Answer:
    """toolkit/dataloader_mixins.py: num_frames over the whole clip, whatever its length; else a random start."""
    if not need_number(context.get("datasets.num_frames", 1, given.dataset)) > 1:
        return not_needed("pictures have one frame.")
    if truth(given.value):
        return mapped(dataset__frame_sampling="even")
    found = choice_of("dataset.frame_sampling", "random")
    if found is not None:
        return mapped(dataset__frame_sampling=found)
    return changed(
        "a random start there; here the whole clip in windows, one after another.", dataset__frame_sampling="chunk"
    )


def _fps(context: Context, given: SetupOption) -> Answer:
    if truth(context.get("datasets.shrink_video_to_frames", True, given.dataset)):
        return not_needed("frames are spread over the whole clip, so that no rate counts (shrink_video_to_frames).")
    return mapped(dataset__fps=float(need_number(given.value)))


def _caption_ext(_context: Context, given: SetupOption) -> Answer:
    ending = str(given.value).strip()
    return mapped(dataset__caption_extension=ending if ending.startswith(".") else f".{ending}")


def _default_caption(_context: Context, given: SetupOption) -> Answer:
    return mapped(dataset__default_caption="" if given.value is None else str(given.value))


def _trigger(_context: Context, given: SetupOption) -> Answer:
    return mapped(dataset__trigger_word="" if given.value is None else str(given.value))


def _dropout(context: Context, given: SetupOption) -> Answer:
    """A dataset's there. Of the run here, where datasets have none of their own."""
    found = float(need_number(given.value))
    if exists("dataset.drop_captions"):
        return mapped(dataset__drop_captions=found)
    rates = {number(item.value) for item in context.given if item.key == given.key}
    if len(rates) > 1:
        return not_supported("all datasets of a run have one share of dropped captions here.")
    return mapped(loop__caption_dropout=found)


def _unload(context: Context, given: SetupOption) -> Answer:
    """extensions_built_in/sd_trainer/SDTrainer.py: without embeddings on disk the trigger word alone is trained, or no word."""
    on_disk = any(item.key.endswith(".cache_text_embeddings") and truth(item.value) for item in context.given)
    if not truth(given.value) or on_disk:
        return not_needed("the text encoder only encodes captions, before the training.")
    why = "AI-Toolkit does not read the captions then"
    has_reg = any(item.key == "datasets.is_reg" and truth(item.value) for item in context.given)
    if not context.get("trigger_word") or has_reg:
        return not_supported(f"{why}. They are read here: set drop_captions of the datasets to 1 for none.")
    return changed(f"{why}, and trains with the trigger word alone.", dataset__caption_source="trigger")


def _is_reg(context: Context, given: SetupOption) -> Answer:
    is_reg = truth(given.value)
    counts = _reg_weight_of(context, given.dataset)
    if counts == 1 or context.has("datasets.loss_multiplier", given.dataset):
        return mapped(dataset__regularization=is_reg)
    return mapped(dataset__regularization=is_reg, dataset__loss_weight=counts)


def _reg_weight_of(context: Context, dataset: int | None) -> float:
    """What the loss of a dataset counts by train.reg_weight, beside its loss_multiplier (SDTrainer.py, 27a03a9)."""
    is_reg = truth(context.get("datasets.is_reg", False, dataset))
    return float(need_number(context.get("train.reg_weight", 1.0))) if is_reg else 1.0


def _reg_weight(context: Context, given: SetupOption) -> Answer:
    if number(given.value) == 1:
        return not_needed("it is 1.")
    if not any(item.key == "datasets.is_reg" and truth(item.value) for item in context.given):
        return not_needed("there is no regularization set.")
    return changed("it is in the loss_weight of each regularization set.")


def _prior_reg(context: Context, given: SetupOption) -> Answer:
    """Each set has its own there; here it is one for all regularization sets."""
    is_elsewhere = any(item.key == given.key and truth(item.value) for item in context.given)
    if truth(given.value) or not is_elsewhere:
        return mapped(regularizers__prior_preservation=truth(given.value))
    if truth(context.get("datasets.is_reg", False, given.dataset)):
        return not_supported("another set has it on, and all regularization sets of a run have it here, or none.")
    return not_needed("it is for regularization sets.")


def _weight(context: Context, given: SetupOption) -> Answer:
    counts = _reg_weight_of(context, given.dataset)
    return loss_weight(given.value if counts == 1 else counts * float(need_number(given.value)), "weight of its own")


def lora_strength(context: Context) -> float:
    """What the LoRA is multiplied by while it is trained: datasets.network_weight, where it is the same for all; else 1.

    toolkit/network_mixins.py multiplies what a layer's LoRA adds, and its file has no word of it.
    """
    datasets = {item.dataset for item in context.given if item.dataset is not None}
    found = {number(context.get("datasets.network_weight", 1, dataset)) for dataset in datasets}
    strength = found.pop() if len(found) == 1 else None
    is_lora = str(context.get("network.type", "lora")).lower() == "lora"
    return strength if is_lora and strength is not None and strength > 0 else 1.0


def _network_weight(context: Context, given: SetupOption) -> Answer:
    weight = number(given.value)
    if weight == 1:
        return not_needed("it is 1.")
    strength = lora_strength(context)
    if weight != strength:
        return not_supported(
            "a LoRA has one strength while it is trained; what a dataset counts is loss_multiplier there."
        )
    rank = float(need_number(context.get("network.linear", 4)))
    why = (
        f"alpha is {strength:g} times the rank, which trains the same; use the LoRA at 1 where you would use theirs at "
        f"{strength:g}."
    )
    return changed(why, adapter__alpha=rank * strength)


def _repeats(_context: Context, given: SetupOption) -> Answer:
    return repeats(given.value)


def _i2v(_context: Context, given: SetupOption) -> Answer:
    return mapped(conditioning="first frame") if truth(given.value) else mapped(conditioning="none")


DATASET_RULES: dict[str, Rule] = {
    "datasets.resolution": _resolution,
    "datasets.buckets": _buckets,
    "datasets.num_frames": _frames,
    "datasets.shrink_video_to_frames": _shrink,
    "datasets.fps": _fps,
    "datasets.caption_ext": _caption_ext,
    "datasets.default_caption": _default_caption,
    "datasets.trigger_word": _trigger,
    "trigger_word": _trigger,
    "datasets.caption_dropout_rate": _dropout,
    "datasets.is_reg": _is_reg,
    "train.reg_weight": _reg_weight,
    "datasets.prior_reg": _prior_reg,
    "datasets.loss_multiplier": _weight,
    "datasets.network_weight": _network_weight,
    "datasets.num_repeats": _repeats,
    "datasets.do_i2v": _i2v,
    "train.unload_text_encoder": _unload,
}
