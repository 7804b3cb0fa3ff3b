"""Where models, LoRAs and datasets lie in ComfyUI's folders, and which names and links of them are followed."""

import os
from pathlib import Path

import folder_paths

from ...core.data.links import files_below, is_file, is_folder, leads_within
from ...core.errors import ConfigError, DatasetError
from ...core.names import check_below, in_short, kind_of

DATASET_ROOTS_VARIABLE = "WANTRAIN_DATASET_ROOTS"
NANO = Path(__file__).resolve().parents[2] / "nano"  # models and datasets that come with the pack


def loras_path() -> Path:
    """The host's first `loras` folder: what is written there shows up in every LoRA loader."""
    return loras_paths()[0]


def loras_paths() -> list[Path]:
    """All of the host's `loras` folders."""
    return [Path(path) for path in folder_paths.get_folder_paths("loras")]


def offer_nano_models() -> None:
    """List the models that come with the pack in the host's loaders, after the user's own."""
    for kind in ("diffusion_models", "vae", "text_encoders"):
        folder_paths.add_model_folder_path(kind, str(NANO / kind))


def user_dataset_roots() -> list[tuple[str, Path]]:
    """(prefix, folder) of the places that users put datasets into."""
    roots = [("input", Path(folder_paths.get_input_directory()))]
    if "datasets" in folder_paths.folder_names_and_paths:
        roots += [("datasets", Path(p)) for p in folder_paths.get_folder_paths("datasets")]
    extra = os.environ.get(DATASET_ROOTS_VARIABLE, "")
    roots += [(Path(p).name, Path(p)) for p in extra.split(os.pathsep) if p]
    return roots


def dataset_roots() -> list[tuple[str, Path]]:
    """(prefix, folder) of the places that datasets may come from: the users', and the pack's own."""
    return [*user_dataset_roots(), ("nano", NANO / "datasets")]


def dataset_folders(depth: int = 3) -> list[str]:
    """Names of the folders below the dataset roots, as `root/folder`."""
    names = []
    for prefix, root in dataset_roots():
        level = [root]
        for _ in range(depth):
            level = [child for folder in level for child in _folders_in(folder)]
            names += [f"{prefix}/{child.relative_to(root).as_posix()}" for child in level]
    return sorted(dict.fromkeys(names), key=lambda name: (name.count("/"), name.lower()))


def _folders_in(folder: Path) -> list[Path]:
    """The folders that a user sees in a folder; none where it is absent or may not be read."""
    try:
        return [child for child in sorted(folder.iterdir())
                if child.is_dir() and not child.name.startswith((".", "__"))]  # fmt: skip
    except OSError:
        return []


def resolve_dataset_folder(name: str) -> Path:
    """A dataset folder by its name. Links are followed to places that are dataset roots themselves, and to no others."""
    if not isinstance(name, str):
        raise DatasetError(f"folder must be a dataset folder's name, but it is {kind_of(name)}.")
    prefix, _, rest = name.replace("\\", "/").partition("/")
    roots = dataset_roots()
    for root in [root for root_prefix, root in roots if rest and root_prefix == prefix]:
        try:
            candidate = root / check_below(rest, "folder")
        except ConfigError as error:
            raise DatasetError(
                f"the dataset folder '{in_short(name)}' leads outside '{prefix}': only folders below it are allowed."
            ) from error
        if not is_folder(candidate):
            continue
        if leads_within(candidate, [place for _, place in roots]):
            return candidate
        raise DatasetError(
            f"the dataset folder '{in_short(name)}' is a link that leads outside the dataset folders: name the place that it "
            f"leads to as one, by datasets: in extra_model_paths.yaml or the environment variable {DATASET_ROOTS_VARIABLE}."
        )
    places = ", ".join(f"{p} ({root})" for p, root in user_dataset_roots())
    raise DatasetError(
        f"the dataset folder '{in_short(name)}' was not found: put your clips and captions into a folder below one of "
        f"{places}, or add a root (datasets: in extra_model_paths.yaml), and press R."
    )


def diffusion_model_names() -> list[str]:
    """Files that LoadWanDiT offers: single files, GGUF too, and index files of sharded models."""
    names = list(folder_paths.get_filename_list("diffusion_models"))
    for root in folder_paths.get_folder_paths("diffusion_models"):
        for path in files_below(Path(root)):
            if path.name.endswith((".safetensors.index.json", ".gguf")):  # which the host's own list leaves out
                names.append(path.relative_to(root).as_posix())
    return list(dict.fromkeys(names))


def _model_path(kind: str, name: str, field: str) -> Path:
    """The full path of a listed file of this kind. Links are followed: people keep models on other disks.

    A name that leads outside the folders as it is written is refused, and so is one that is no file's.
    """
    check_below(name, field)
    for root in folder_paths.get_folder_paths(kind):
        candidate = Path(root) / name
        if is_file(candidate):
            return candidate
    raise ConfigError(
        f"{field}: the file '{in_short(name)}' was not found in the {kind} folders: put it there and press R; if it is "
        "a link, connect the disk that it leads to."
    )


def diffusion_model_path(name: str, field: str = "model_name") -> Path:
    """The full path of a listed model file; ConfigError if there is none."""
    return _model_path("diffusion_models", name, field)


def diffusion_models_path() -> Path:
    """The host's folder of that name, before the older `unet`: what is written there shows up in every loader of models."""
    paths = [Path(path) for path in folder_paths.get_folder_paths("diffusion_models")]
    return next((path for path in paths if path.name == "diffusion_models"), paths[0])


def text_encoder_path(name: str) -> Path:
    """The full path of a listed text encoder file; ConfigError if there is none."""
    return _model_path("text_encoders", name, "name")


def text_encoder_names() -> list[str]:
    """Files that text encoder loaders offer."""
    return folder_paths.get_filename_list("text_encoders")


def _language_model_roots() -> list[Path]:
    """Where people keep language models as Hugging Face has them, a folder each."""
    roots = [Path(folder_paths.models_dir) / "LLM"]
    if "LLM" in folder_paths.folder_names_and_paths:
        roots += [Path(path) for path in folder_paths.get_folder_paths("LLM")]
    return list(dict.fromkeys(roots))


def language_model_names() -> list[str]:
    """Folders of language models: those below models/LLM that hold a config.json, at most two levels deep."""
    found: list[str] = []
    for root in _language_model_roots():
        level = _folders_in(root)
        for folder in [*level, *(child for one in level for child in _folders_in(one))]:
            if is_file(folder / "config.json"):
                found.append(folder.relative_to(root).as_posix())
    return sorted(dict.fromkeys(found), key=str.lower)


def language_model_path(name: str) -> Path:
    """The full path of a listed folder of a language model; ConfigError if there is none."""
    check_below(name, "model_folder")
    for root in _language_model_roots():
        if is_folder(root / name):
            return root / name
    raise ConfigError(
        f"model_folder: '{in_short(name)}' was not found below models/LLM: put the model's folder there and press R."
    )


def lora_names() -> list[str]:
    """Files that LoRA loaders offer."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str, field: str = "lora_file") -> Path:
    """The full path of a listed LoRA; ConfigError if there is none."""
    return _model_path("loras", name, field)


def known_files() -> dict[str, list[str]]:
    """Names that loaders and Dataset from Folder offer, by kind."""
    kinds = ("vae", "text_encoders", "clip_vision")
    found = {kind: list(folder_paths.get_filename_list(kind)) for kind in kinds}
    return {**found, "diffusion_models": diffusion_model_names(), "datasets": dataset_folders()}
