"""What can be told of a recipe's models from the headers of their files, before anything is loaded."""

from dataclasses import replace
from pathlib import Path

from ..adapters.places import check_patterns
from ..encoders.tokenizer import find_tokenizer
from ..encoders.vision import check_vision_file
from ..encoders.weights import EncoderWeights, open_weights
from ..errors import ConfigError, ModelFileError
from ..facts import official_boundary
from ..packages import check_packages
from ..paths import path_problem, shown
from ..plan.sizes import layer_paths
from ..settings.job import Stage, stage_window
from ..train.checks import CONDITIONINGS_OF, PAIRED_ADVICE, check_blocks, check_holding
from ..train.crepa import check_crepa_files
from ..train.other_expert import other_spec
from ..train.shared import check_shared_settings
from ..train.start import check_methods, needed_packages
from ..wan.checkpoint import CheckpointInfo, inspect
from ..wan.config import Variant
from ..wan.identify import identify
from .recipe import Recipe

_VAES = {"wan2.1": "wan2.1_vae", "wan2.2": "wan2.2_vae"}

_KINDS: dict[Variant, str] = {
    "t2v": "a text-to-video model",
    "i2v": "an image-to-video model, which is given frames",
    "flf2v": "a model that is given the first and the last frame",
    "ti2v": "a model that is given no frame but the first",
}


def check_models(recipe: Recipe) -> dict[Stage, CheckpointInfo]:
    """What each model to train is. ConfigError or ModelFileError if models, encoders and conditioning do not fit."""
    infos: dict[Stage, CheckpointInfo] = {stage: inspect(Path(path)) for stage, path in recipe.runs.items()}
    for stage, info in infos.items():
        settings = recipe.settings(stage)
        if stage == "both":
            other = inspect(Path(recipe.models.low))
            other_spec(stage, info, other, allow_other=settings.allow_other_expert)
            check_shared_settings(settings, has_other=True)
        check_packages(needed_packages(settings.optimizer.name, settings.precision))
        check_methods(settings)
        stage_window(stage, settings.boundary or official_boundary(info.config.variant))
        check_holding(info, settings.precision, settings.memory, has_adapter=bool(recipe.models.recovery_adapter))
        check_patterns(settings.adapter, layer_paths(info.config))
        check_blocks(settings, info)
        if settings.crepa.weight:
            check_crepa_files(replace(settings.crepa, vae=settings.crepa.vae or recipe.models.vae))
        _check_conditioning(recipe, info)
        _check_given(recipe, info)
        _check_vision(recipe, info)
        _check_kind(recipe.models.vae, "vae", _VAES[info.config.latent_format], f"the VAE of {info.path.name}")
    encoder = _check_kind(recipe.models.text_encoder, "text_encoder", "umt5", "a umT5 text encoder")
    find_tokenizer(encoder, Path(recipe.models.tokenizer) if recipe.models.tokenizer else None)
    return infos


def _check_kind(path: str, folder: str, kind: str, wanted: str) -> EncoderWeights:
    """The opened file. `folder`: where a diffusers pipeline has it."""
    _check_exists(path)
    inner = Path(path) / folder
    weights = open_weights(inner if inner.is_dir() else Path(path))
    found = identify(weights.shapes)
    if found.name != kind:
        raise ModelFileError(f"'{path}' is {found.label}, but {wanted} is needed there: correct the recipe's models.")
    return weights


def _check_exists(path: str) -> None:
    problem = path_problem(path, folders=True)
    if problem:
        raise ModelFileError(f"the model file '{shown(path)}' {problem}: check its name in the recipe.")


def _check_conditioning(recipe: Recipe, info: CheckpointInfo) -> None:
    variant = info.config.variant
    wanted = CONDITIONINGS_OF[variant]
    if recipe.conditioning not in wanted:
        choices = " or ".join(f"'{choice}'" for choice in wanted)
        what_to_do = "leave conditioning out" if wanted == ("none",) else f"set conditioning to {choices}"
        raise ConfigError(
            f"conditioning is '{recipe.conditioning}', but {info.path.name} is {_KINDS[variant]}: {what_to_do}."
        )


def _check_given(recipe: Recipe, info: CheckpointInfo) -> None:
    """Pictures that are named to be given, and would not be."""
    for source in recipe.datasets:
        names = source.options.gives_frames
        if names and (recipe.conditioning == "none" or info.config.variant == "ti2v"):
            raise ConfigError(
                f"{names[0]} is set, but {info.path.name} with conditioning '{recipe.conditioning}' is given no pictures: "
                "leave it out, or, for image-to-video, set conditioning to 'first frame' or 'first and last frame'."
            )
        if "last_frames" in names and recipe.conditioning == "first frame":
            raise ConfigError(
                "last_frames is set, but conditioning is 'first frame': leave it out, or choose 'first and last frame'."
            )


def check_paired(recipe: Recipe) -> None:
    """ConfigError for control clips and reference pictures, which no model is given that can be trained yet."""
    for source in recipe.datasets:
        for name in ("control_clips", "reference_pictures"):
            if getattr(source.options, name):
                raise ConfigError(f"{name} is set, but no model that can be trained is given any: {PAIRED_ADVICE}.")


def _check_vision(recipe: Recipe, info: CheckpointInfo) -> None:
    path = recipe.models.clip_vision
    if info.config.image_dim is None:
        if path:
            raise ConfigError(f"{info.path.name} takes no CLIP features: leave models.clip_vision out.")
    elif not path:
        raise ConfigError(
            f"{info.path.name} needs the CLIP features of the given frames: set models.clip_vision to "
            "clip_vision_h.safetensors."
        )
    else:
        _check_exists(path)
        check_vision_file(Path(path))
