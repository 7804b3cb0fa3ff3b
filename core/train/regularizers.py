"""What a job's regularisers need of its data, and what of them follows an update."""

from collections.abc import Callable

from torch import Tensor, nn

from ..adapters.kind import ADAPTER_KINDS
from ..adapters.norms import NormLimit
from ..errors import ConfigError
from ..objective.regularizers import regularizers_of
from ..optimizers import OPTIMIZERS
from ..settings.job import Job


def check_regularizers(job: Job) -> None:
    """ConfigError for output preservation without a class word, and for a limit of weights that can't be limited."""
    if job.regularizers.max_weight_norm and OPTIMIZERS.get(job.optimizer.name).averages_with(job.optimizer):
        raise ConfigError(
            f"max_weight_norm does not go with the optimizer {job.optimizer.name}: it averages the weights by itself, and the "
            "average would not be limited; set max_weight_norm to 0, or choose another optimizer."
        )
    if job.regularizers.max_weight_norm and not ADAPTER_KINDS.get(job.adapter.kind).is_plain:
        raise ConfigError(
            f"max_weight_norm is for plain LoRAs, and adapter is {job.adapter.kind}: set max_weight_norm to 0, or adapter "
            "to lora."
        )
    if job.regularizers.single_pass and job.crepa.weight and regularizers_of(job.regularizers):
        raise ConfigError(
            "preservation_single_pass does not go with crepa_weight, which looks at one caption's hidden states: set one of "
            "them off."
        )
    weight = job.regularizers.output_preservation
    if weight and not any(sample.class_texts for sample in job.training_samples):
        raise ConfigError(
            f"output_preservation is {weight:g}, but no caption has a class word: set trigger_word and class_word of the "
            "dataset, such as person, and cache latents and captions again; or set output_preservation to 0."
        )


def regularizer_warnings(job: Job) -> list[str]:
    """Samples that take no part in output preservation, and a class word that nothing is done with."""
    samples = job.training_samples
    without = [sample for sample in samples if not sample.class_texts]
    found: list[str] = []
    if job.regularizers.single_pass and not regularizers_of(job.regularizers):
        found.append("preservation_single_pass has no effect: output_preservation and blank_preservation are 0.")
    if job.regularizers.prior_preservation and not any(sample.is_regularization for sample in samples):
        found.append("prior_preservation has no effect: no dataset is a regularization set.")
    if not job.regularizers.output_preservation:
        if len(without) < len(samples):
            found.append("class_word has no effect: output_preservation is 0.")
        return found
    kept = sum(sample.is_regularization for sample in without)
    others = [sample.name for sample in without if not sample.is_regularization]
    if kept:
        found.append(
            f"output_preservation leaves out the regularization sets (samples: {kept}), which have no trigger word."
        )
    if others:
        named = others[0] + (", ..." if len(others) > 1 else "")
        found.append(
            f"output_preservation leaves out {len(others)} of {len(samples)} samples, whose dataset has no class word "
            f"({named}): set class_word there, too."
        )
    return found


def after_updates(job: Job, model: nn.Module) -> list[Callable[[Tensor], None]]:
    """What acts on the weights after each update, in order; see `core.train.loop.AfterUpdate`."""
    limit = job.regularizers.max_weight_norm
    return [NormLimit(model, limit)] if limit else []
