"""LoRA files that hold two LoRAs, one for each expert of Wan 2.2: told by what their tensors' names begin with.

- diffusers, of both models of a pipeline: `transformer.` and `transformer_2.`
- AI-Toolkit with `split_multistage_loras: false`: `diffusion_model.transformer_1.` and `diffusion_model.transformer_2.`
- OneTrainer: `lora_transformer` and `lora_transformer_2`, or `diffusion_model.` and `diffusion_model_2.`
- DiffSynth-Studio, if it writes such files (none was seen): `pipe.dit.` and `pipe.dit2.`, its names for the two models

The second is the low noise expert in all of them. ComfyUI's loaders know none of these names.
"""

from collections.abc import Collection, Iterable

from ..errors import TWO_LORAS, ModelFileError
from ..facts import Expert
from ..wan.limits import shown
from .keys import expert_of_key


def expert_of_keys(keys: Iterable[str]) -> Expert | None:
    """The one expert that all of a file's names tell; None where they tell none, or both."""
    found: set[Expert | None] = {expert_of_key(key) for key in keys}
    return found.pop() if len(found) == 1 else None


def holds_two(keys: Collection[str]) -> bool:
    """Whether a file's tensors are of both experts."""
    low = sum(expert_of_key(key) == "low" for key in keys)
    return 0 < low < len(keys)


def keys_of(keys: Collection[str], half: Expert | None, where: str) -> list[str]:
    """Those of one expert; with None all, of a file that holds one LoRA.

    ModelFileError, which names the file by `where`, for two LoRAs without `half`, and for one LoRA with it.
    """
    is_double = holds_two(keys)
    if half is None:
        if is_double:
            first, second = (next(key for key in keys if (expert_of_key(key) == "low") == is_low) for is_low in (0, 1))
            raise ModelFileError(
                f"{where} holds two LoRAs, one for each expert of Wan 2.2 (such as '{shown(first)}' and '{shown(second)}'): no"
                " loader of ComfyUI reads that; split it into a file for each.",
                about=TWO_LORAS,
            )
        return list(keys)
    if not is_double:
        raise ModelFileError(f"{where} holds one LoRA, and not two: there is nothing to split; use it as it is.")
    return [key for key in keys if (expert_of_key(key) == "low") == (half == "low")]
