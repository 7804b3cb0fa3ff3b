"""What kind of file of which trainer a text is, told by its content."""

import re
from typing import Any, Literal

from .texts import Parsed

SetupKind = Literal[
    "musubi dataset", "musubi options", "musubi commands", "musubi list", "musubi prompts", "aitoolkit job",
    "simpletuner config", "simpletuner datasets", "simpletuner prompts", "simpletuner lycoris", "simpletuner commands",
    "diffusion_pipe config", "diffusion_pipe dataset",
]  # fmt: skip

_MUSUBI = re.compile(
    r"wan_(train_network|train|cache_latents|cache_text_encoder_outputs)\.py|--network_module\b|--dit\b"
)
_SIMPLETUNER = re.compile(
    r"simpletuner\s+train|--model_family\b|--data_backend_config\b|TRAINER_EXTRA_ARGS|--lora_rank\b"
)
_PROMPT_LINE = re.compile(r"^[^#\n]*\S\s+--(?:w|h|f|d|s|l|fs|n|g|i)\s", re.MULTILINE)
_MUSUBI_OPTIONS = {"network_module", "dit", "dataset_config", "network_dim", "timestep_sampling"}
_SIMPLETUNER_OPTIONS = {
    "model_family",
    "data_backend_config",
    "model_flavour",
    "lora_rank",
    "train_batch_size",
    "lora_type",
}


def kind_of(parsed: Parsed) -> SetupKind | None:
    """The kind of a file; None where it is none of a trainer that is known."""
    data = parsed.data
    if isinstance(data, dict):
        return _of_tables(data)
    if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        return _of_list(data)
    if data is None and isinstance(parsed.text, str):
        if _MUSUBI.search(parsed.text):
            return "musubi commands"
        if _SIMPLETUNER.search(parsed.text):
            return "simpletuner commands"
        if _PROMPT_LINE.search(parsed.text) and "prompt" in parsed.name.lower():
            return "musubi prompts"
    return None


def _of_tables(data: dict[str, Any]) -> SetupKind | None:
    names = {str(name).lstrip("-") for name in data}
    config = data.get("config")
    if isinstance(config, dict) and isinstance(config.get("process"), list):
        return "aitoolkit job"
    if isinstance(data.get("datasets"), list):
        return "musubi dataset"
    if isinstance(data.get("directory"), list):
        return "diffusion_pipe dataset"
    if isinstance(data.get("model"), dict) and ("adapter" in data or "optimizer" in data or "output_dir" in data):
        return "diffusion_pipe config"
    if names & _SIMPLETUNER_OPTIONS and "network_module" not in names:
        return "simpletuner config"
    if names & _MUSUBI_OPTIONS:
        return "musubi options"
    if "algo" in names and ("linear_dim" in names or "factor" in names or "apply_preset" in names):
        return "simpletuner lycoris"
    if data and all(isinstance(value, str) for value in data.values()):
        return "simpletuner prompts"
    return None


def _of_list(data: list[dict[str, Any]]) -> SetupKind | None:
    if any(key in item for item in data for key in ("image_path", "video_path", "image_path_0")):
        return "musubi list"
    if any(key in item for item in data for key in ("instance_data_dir", "dataset_type", "caption_strategy")):
        return "simpletuner datasets"
    return None
