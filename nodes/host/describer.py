"""The host's own vision-language models, which its text encoder loaders give, as `core.captioning.folder.Describer`.

As the host's node Generate Text uses them. Shapes: F frames, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ...core.data.latents import unit_range
from ...core.errors import ConfigError, RunError
from ...core.shortage import is_out_of_memory
from .control import raise_if_interrupted

_SIDE = 64  # of the picture that tells whether the model looks at any


class HostDescriber:
    """A CLIP of the host that looks at pictures and answers; it takes one file at a time."""

    batch_size = 1

    def __init__(self, clip: Any):
        self._clip = clip
        if not hasattr(clip, "generate") or not self._sees(torch.zeros(1, _SIDE, _SIDE, 3)):
            raise ConfigError(
                "the CLIP does not look at pictures: load a vision-language model with Load CLIP, such as qwen3vl_4b, "
                "qwen35_4b or gemma4; or leave it out and choose a model_folder."
            )

    def describe(
        self, shown: Sequence[torch.Tensor], questions: Sequence[str], max_tokens: int
    ) -> list[tuple[str, bool]]:
        """For each of `shown`, [F, H, W, 3] uint8, and its question: the answer, and whether max_tokens cut it off."""
        return [self._answer(frames, question, max_tokens) for frames, question in zip(shown, questions, strict=True)]

    def _answer(self, frames: torch.Tensor, question: str, max_tokens: int) -> tuple[str, bool]:
        raise_if_interrupted()
        try:
            tokens = self._tokenize(question, unit_range(frames))
            found = self._clip.generate(tokens, do_sample=False, max_length=max_tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                "The model ran out of memory: lower num_frames or picture_size, or load a smaller one; the captions so far "
                "are kept."
            ) from error
        return self._clip.decode(found), len(found) >= max_tokens

    def _tokenize(self, question: str, pictures: torch.Tensor) -> Any:
        """As the node Generate Text does; `pictures`: [F, H, W, 3] in 0..1."""
        return self._clip.tokenize(question, image=pictures, skip_template=False, min_length=1, thinking=False)

    def _sees(self, picture: torch.Tensor) -> bool:
        """Whether a picture leaves its place among the tokens; a text encoder drops it without a word."""
        try:
            tokens = self._tokenize("a", picture)
        except (TypeError, AttributeError):  # a tokenizer that does not know the argument
            return False
        rows = [row for chunks in tokens.values() for row in chunks]
        return any(isinstance(token[0], dict) and token[0].get("type") == "image" for row in rows for token in row)
