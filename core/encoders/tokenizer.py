"""The sentencepiece model of a umT5 encoder: in its file, beside it, or in another file of the same encoder."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import TOKENIZER, ModelFileError, WanTrainError
from ..paths import path_problem, shown
from .weights import EncoderWeights, open_weights, read_one

TOKENIZER_FILE = "spiece.model"
# Relative to the weights: the official repository, one folder with everything, diffusers' pipeline.
TOKENIZER_PLACES = (Path("google/umt5-xxl"), Path(), Path("../tokenizer"))
_KEY = "spiece_model"  # of ComfyUI's files
_TABLE = ("shared.weight", "token_embedding.weight", "encoder.embed_tokens.weight")


def find_tokenizer(
    weights: EncoderWeights, given: Path | None = None, folders: Sequence[Path] = ()
) -> tuple[Path, bytes]:
    """(where it is, the serialized sentencepiece model).

    `given`: a spiece.model, its folder, or a umT5 .safetensors file that holds one. Without it: the one in the file, a
    spiece.model beside it or in one of `folders`, or the one in a .safetensors file there with as many tokens. ModelFileError,
    which says what to do, if there is none.
    """
    if given is not None:
        return _of_path(Path(given))
    if _KEY in weights.shapes:
        return weights.path, _inside(weights)
    own = weights.path if weights.path.is_dir() else weights.path.parent
    places = [own / place / TOKENIZER_FILE for place in TOKENIZER_PLACES]
    places += [folder / TOKENIZER_FILE for folder in folders if folder / TOKENIZER_FILE not in places]
    for place in places:
        if place.is_file():
            return place, place.read_bytes()
    for folder in dict.fromkeys((own, *folders)):
        for path in sorted(folder.glob("*.safetensors")):
            data = _of_neighbour(path, weights)
            if data is not None:
                return path, data
    raise ModelFileError(
        f"'{weights.path}' has no tokenizer inside, there is no {TOKENIZER_FILE} at {', '.join(map(str, places))}, and no "
        "umT5 .safetensors file beside it holds one: put the spiece.model of google/umt5-xxl beside it, name it as the "
        "tokenizer, or use umt5_xxl_fp16.safetensors, which holds its own.",
        about=TOKENIZER,
    )


def _of_path(path: Path) -> tuple[Path, bytes]:
    path = path / TOKENIZER_FILE if path.is_dir() else path
    problem = path_problem(path)
    if problem:
        raise ModelFileError(f"the tokenizer {shown(path)} {problem}: name the {TOKENIZER_FILE} of google/umt5-xxl.")
    if path.suffix.lower() != ".safetensors":
        return path, path.read_bytes()
    weights = open_weights(path)
    if _KEY not in weights.shapes:
        raise ModelFileError(
            f"'{path}' holds no tokenizer: name the {TOKENIZER_FILE} of google/umt5-xxl, or a umT5 file of ComfyUI's."
        )
    return path, _inside(weights)


def _of_neighbour(path: Path, weights: EncoderWeights) -> bytes | None:
    """The tokenizer in another file, if that is an encoder of as many tokens."""
    try:
        other = open_weights(path)
        if _KEY not in other.shapes or _vocabulary(other) != _vocabulary(weights):
            return None
        return _inside(other)
    except (WanTrainError, OSError):  # some other file of the user's, which nobody asked for
        return None


def _inside(weights: EncoderWeights) -> bytes:
    return read_one(weights, _KEY).flatten().view(torch.uint8).numpy().tobytes()


def _vocabulary(weights: EncoderWeights) -> int | None:
    """Number of tokens that the encoder knows."""
    return next((weights.shapes[name][0] for name in _TABLE if weights.shapes.get(name)), None)
