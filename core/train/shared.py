"""What one LoRA for both experts can't be combined with: told before anything is loaded."""

from pathlib import Path

from ..adapters.kind import ADAPTER_KINDS
from ..errors import ConfigError
from ..memory.precision import needs_adapter
from ..settings.job import Job
from ..settings.stage import StageSettings
from ..wan.checkpoint import CheckpointInfo
from .checks import check_model_file


def check_shared_settings(settings: StageSettings, *, has_other: bool) -> None:
    """ConfigError for settings with which one LoRA can't go through both experts. `has_other`: whether both are given."""
    if not has_other:
        raise ConfigError(
            "shared_lora trains one LoRA through both experts, but one alone is given: give the other one, too."
        )
    _check_kinds(settings.adapter.kind, settings.precision, settings.adapter.merge_into_base)


def check_shared(job: Job, info: CheckpointInfo) -> None:
    """ConfigError for a job of both experts that can't be trained. `info`: its model, the high noise expert."""
    if job.turns is None or job.other_expert is None:
        return
    _check_kinds(job.adapter.kind, job.model.precision, job.adapter.merge_into_base)
    other = check_model_file(job.other_expert)
    name = Path(job.other_expert.path).name
    if other.config != info.config:
        raise ConfigError(
            f"{name} and {info.path.name} are not the two experts of one model: their sizes or kinds differ."
        )
    if other.weights != info.weights:
        raise ConfigError(
            f"{info.path.name} is stored as {info.weights} and {name} as {other.weights}, but with shared_lora both take turns"
            " in one model: use files of the same format."
        )


def check_one_gpu(job: Job, gpus: int) -> None:
    """ConfigError for a job of both experts over several GPUs."""
    if job.turns is not None and gpus > 1:
        raise ConfigError(
            f"shared_lora trains on one GPU, but {gpus} are chosen: set device to one, such as cuda:0, or shared_lora to false."
        )


def _check_kinds(adapter: str, precision: str, merge_into_base: str) -> None:
    if ADAPTER_KINDS.get(adapter).begins_at_base:
        raise ConfigError(
            f"shared_lora does not go with the adapter {adapter}, which begins at the weights of one expert and fits no other:"
            " choose lora, or turn shared_lora off."
        )
    if merge_into_base:
        raise ConfigError(
            "shared_lora does not go with merge_into_base, which is one LoRA for two different experts: merge each expert's"
            " into its own file first, or leave merge_into_base empty."
        )
    if needs_adapter(precision):
        raise ConfigError(
            f"shared_lora does not go with the precision {precision}, whose file holds what one expert has lost: choose"
            " another."
        )
