"""Every method of every registry, and what else changes a training, as changes of a miniature's job."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from wan_train.core.adapters.kind import ADAPTER_KINDS
from wan_train.core.errors import WanTrainError
from wan_train.core.flow.losses import LOSSES
from wan_train.core.flow.timesteps import SAMPLINGS
from wan_train.core.flow.weightings import WEIGHTINGS
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.schedules import SCHEDULES
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.crepa import CrepaOptions
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.job import ExpertTurns, Job, ModelSpec
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.settings.rollout import RolloutOptions
from wan_train.core.settings.tread import TreadOptions
from wan_train.core.train.crepa import crepa_identity
from wan_train.core.train.start import check_start
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import with_class

Change = Callable[[Job], Job]
# What a method needs beside its name.
OPTIMIZER_OPTIONS = {
    "prodigy": {"learning_rate": 1.0, "args": "d0=1e-3"},
    "custom": {"path": "torch.optim.NAdam"},
    "muon": {"beta1": 0.95},
}
# What rounding in bf16 may move a prediction of the miniature by, as the root of the mean square: between fp32 and bf16, prior
# preservation's losses are 2.09e-5 and 2.65e-5, whose roots lie 5.7e-4 apart, while predictions are 0.7 to 1.9.
ROUNDING = 5e-4
SAMPLING_OPTIONS = {"curve": {"curve": "0:1, 0.3:4, 1:0.5"}}


def group(name: str, **changes: object) -> Change:
    """A change of some options of one group."""
    return lambda job: replace(job, **{name: replace(getattr(job, name), **changes)})


def optimizers() -> dict[str, Change]:
    def change(name: str) -> Change:
        options = OptimizerOptions(**{"name": name, "learning_rate": 1e-3, **OPTIMIZER_OPTIONS.get(name, {})})
        return lambda job: replace(job, optimizer=options)

    return {name: change(name) for name in OPTIMIZERS.names}


def adapters() -> dict[str, Change]:
    return {
        name: lambda job, name=name: replace(job, adapter=AdapterOptions(kind=name, rank=4, alpha=4.0))
        for name in ADAPTER_KINDS.names
    }


def laws() -> dict[str, Change]:
    """Losses, weightings, laws of the noise levels, schedules."""
    return {
        **{f"loss {name}": group("loss", kind=name) for name in LOSSES.names},
        **{f"weighting {name}": group("loss", weighting=name) for name in WEIGHTINGS.names},
        **{f"timesteps {name}": group("timesteps", sampling=name, **SAMPLING_OPTIONS.get(name, {}))
           for name in SAMPLINGS.names},
        **{f"schedule {name}": group("schedule", kind=name, warmup_steps=1) for name in SCHEDULES.names},
    }  # fmt: skip


def beside(folder: Path, encoder: Path, vae: Path, low: Path) -> dict[str, Change]:
    """What has more forwards, terms or weights than a plain training. `folder`: for files of the samples."""

    def dop(job: Job) -> Job:
        samples = tuple(with_class(folder, sample) for sample in job.data.samples)
        job = replace(job, data=replace(job.data, samples=samples))
        return replace(job, regularizers=replace(job.regularizers, output_preservation=0.5))

    def adaptive(job: Job) -> Job:
        job = dop(job)
        return replace(job, regularizers=replace(job.regularizers, preservation_target=0.01))

    def single_pass(job: Job) -> Job:
        job = dop(job)
        return replace(job, regularizers=replace(job.regularizers, blank_preservation=0.5, single_pass=True))

    def prior(job: Job) -> Job:
        first, *rest = job.data.samples
        data = replace(job.data, samples=(replace(first, is_regularization=True), *rest))
        return replace(job, data=data, regularizers=replace(job.regularizers, prior_preservation=True))

    def crepa(job: Job) -> Job:
        options = CrepaOptions(weight=0.5, encoder=str(encoder), vae=str(vae), block=0, image_size=42)
        return replace(job, crepa=options, crepa_identity=crepa_identity(options))

    def shared(job: Job) -> Job:
        other = ModelSpec(path=str(low), identity=inspect(low).identity, precision=job.model.precision)
        timesteps = replace(job.timesteps, sigma_min=0.0, sigma_max=1.0)
        turns = ExpertTurns(every=1, boundary=0.875)
        return replace(job, stage="both", timesteps=timesteps, other_expert=other, turns=turns)

    return {
        "output preservation": dop,
        "blank preservation": lambda job: replace(job, regularizers=RegularizerOptions(blank_preservation=0.5)),
        "adaptive preservation": adaptive,
        "single pass": single_pass,
        "prior preservation": prior,
        "weight norms": group("regularizers", max_weight_norm=0.01),
        "crepa": crepa,
        "tread": lambda job: replace(job, tread=TreadOptions(routes="1 to 1: 0.5")),
        "rollout": lambda job: replace(job, rollout=RolloutOptions(steps=3, probability=1.0)),
        "direction": lambda job: replace(job, rollout=RolloutOptions(steps=2, probability=1.0, direction=0.1)),
        "contrastive": group("loss", contrastive_guidance=3.0),
        "differential": group("loss", differential_guidance=3.0),
        "ema": lambda job: replace(job, ema=EmaOptions(use=True, every=2)),
        "dropout": group("adapter", dropout=0.2, rank_dropout=0.2, module_dropout=0.2),
        "lora plus": group("optimizer", lora_plus=4.0),
        "clip by value": group("optimizer", clip_by="value", max_grad_norm=0.01),
        "accumulation": group("loop", gradient_accumulation=2, batch_size=2),
        "strata": group("timesteps", strata=4, bias="favor_high_noise"),
        "shared lora": shared,
    }


def assert_same_losses(one: Sequence[float], other: Sequence[float], rel: float) -> None:
    """Equal but for rounding in bf16, of which `rel` is the share of a loss that begins large.

    A loss is compared by its root, which is the mean distance of a prediction from its target: it changes by no more than the
    prediction does. So a loss that begins at nothing, as that of a LoRA which should say what its base says, may be as far off
    as rounding is, and no farther.
    """
    roots = [[math.copysign(abs(loss) ** 0.5, loss) for loss in losses] for losses in (one, other)]
    assert roots[1] == pytest.approx(roots[0], rel=rel / 2, abs=ROUNDING)


def refusal(job: Job) -> str:
    """Why the job is refused before its model is loaded; "" if it is not."""
    try:
        check_start(job, inspect(Path(job.model.path)))
    except WanTrainError as error:
        return str(error)
    return ""


def mix(seed: int, job: Job, others: dict[str, Change]) -> tuple[list[str], Job]:
    """A method of each kind and four of `others`, drawn by `seed`: those of a draw that are not refused beside the rest."""
    draw = random.Random(seed)
    kinds = ("loss ", "weighting ", "timesteps ", "schedule ")
    all_laws = laws()
    chosen: list[tuple[str, Change]] = [draw.choice(sorted(optimizers().items()))]
    chosen += [draw.choice(sorted(adapters().items()))]
    chosen += [draw.choice([item for item in sorted(all_laws.items()) if item[0].startswith(kind)]) for kind in kinds]
    chosen += draw.sample(sorted(others.items()), 6)
    names = list[str]()
    for name, change in chosen:
        changed = change(job)
        if not refusal(changed):
            job = changed
            names.append(name)
    return names, job
