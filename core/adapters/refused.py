"""Files that hold no plain LoRA, refused for what they are."""

import re

from ..errors import HostOnlyError, ModelFileError
from ..wan.limits import shown
from .keys import FOREIGN_METHODS, split_part

# Keys that tell what a file without LoRA weights is; the first that occurs decides.
_OTHER_FILES = (
    (r"(^|\.)head\.modulation$|(^|\.)scale_shift_table$", "a Wan transformer (a whole model, not a LoRA)"),
    (r"^encoder\.block\.\d+\.|^shared\.weight$|^token_embedding\.weight$", "a T5 text encoder"),
    (r"^(?:encoder|decoder)\.(?:conv1|conv_in|downsamples|upsamples|mid)", "a VAE"),
    (r"^visual\.|^vision_model\.", "a CLIP vision encoder"),
    (r"^latents?(_|$)|^context$|^varlen_", "a cache of latents or text embeddings"),
    (r"double_blocks|single_blocks|transformer_blocks|input_blocks|joint_blocks", "a checkpoint of another model"),
)


def refuse_other_files(keys: list[str], where: str) -> None:
    """ModelFileError if the keys are those of anything but a plain LoRA; `where` names the file."""
    for pattern, method in FOREIGN_METHODS:
        key = next((key for key in keys if pattern.search(key)), None)
        if key is not None:
            raise HostOnlyError(
                f"{where} is a {method} file (key '{shown(key)}'), and only plain LoRA can be read here: "
                "load it with the host's own LoRA loader instead.",
            )
    if any(split is not None and split[1] != "alpha" for split in map(split_part, keys)):
        return
    for pattern, what in _OTHER_FILES:
        if any(re.search(pattern, key) for key in keys):
            raise ModelFileError(f"{where} is {what}: choose a LoRA file.")
    found = f"its first key is '{shown(keys[0])}'" if keys else "it is empty"
    raise ModelFileError(f"{where} holds no LoRA weights, {found}: choose a LoRA file.")
