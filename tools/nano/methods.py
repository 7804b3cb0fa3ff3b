"""The methods that the bench of methods compares: what each sets, beside what it is measured, and who advises it.

A method's settings are a job's own, by their dotted names; "high:" or "low:" in front is for one expert alone. The order is
that in which they are run: first what guides advise, then the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...core.errors import ConfigError
from .family import STAGES
from .settings import Settings, all_changed

BASELINE = "baseline"
PLAIN = "lora"  # the row of benchmarks/method_memory.py that has the cost of a plain LoRA
# Batches of 8 for 160 steps show an expert as many clips as the demo's 4 for 320, in half the launches of kernels.
COMMON = {
    "clips": "12", "others": "8", "loop.steps": "160", "loop.batch_size": "8", "optimizer.learning_rate": "1.5e-3",
}  # fmt: skip
MUSUBI, AITOOLKIT, SIMPLETUNER = "musubi-tuner", "AI-Toolkit", "SimpleTuner"


@dataclass(frozen=True)
class Method:
    """One way of training, that differs from another in what it sets."""

    name: str
    group: str
    sets: dict[str, str] = field(default_factory=dict)
    advised_by: str = ""  # the trainer whose guide advises it
    against: str = BASELINE
    cost: str = PLAIN  # the row of benchmarks/method_memory.py that has what its step costs; "": none has

    def settings(self, stage: str, common: Sequence[tuple[str, str]] = ()) -> Settings:
        """How one expert is taught; `common` comes over what all methods have in common."""
        return all_changed(Settings(), (*COMMON.items(), *common, *self._own(stage)))

    def _own(self, stage: str) -> list[tuple[str, str]]:
        named = [(*name.rpartition(":")[::2], value) for name, value in self.sets.items()]
        for of_stage, name, _ in named:
            if of_stage not in ("", *STAGES):
                raise ConfigError(f"{self.name} sets {of_stage}:{name}; the experts are {', '.join(STAGES)}.")
        return [(name, value) for of_stage, name, value in named if of_stage in ("", stage)]


def _sampling(name: str, advised_by: str = "", **more: str) -> Method:
    sets = {"timesteps.sampling": name, **{f"timesteps.{option}": value for option, value in more.items()}}
    told = " ".join(value for value in more.values())
    return Method(f"{name} {told}".strip(), "timesteps", sets, advised_by)


def _one(group: str, name: str, setting: str, value: str, advised_by: str = "", *, cost: str = PLAIN) -> Method:
    return Method(name, group, {setting: value}, advised_by, cost=cost)


def _loss(kind: str) -> Method:
    return _one("losses", kind, "loss.kind", kind, cost=f"loss {kind}")


def _weighting(name: str, advised_by: str = "") -> Method:
    return _one("weightings", name, "loss.weighting", name, advised_by, cost=f"weighting {name}")


def _adapter(name: str, kind: str, advised_by: str = "") -> Method:
    return _one("adapters", name, "adapter.kind", kind, advised_by, cost=f"adapter {kind}")


def _optimizer(name: str, rate: str, *more: tuple[str, str], advised_by: str = "") -> Method:
    sets = {"optimizer.name": name, "optimizer.learning_rate": rate, **dict(more)}
    return Method(f"{name} {rate}", "optimizers", sets, advised_by, cost=f"optimizer {name}")


_ADVISED = (
    _sampling("sigmoid", AITOOLKIT),
    _sampling("shift", MUSUBI, shift="1"),
    _sampling("shift", SIMPLETUNER, shift="3"),
    _sampling("shifted_uniform", AITOOLKIT, shift="5"),
    _one("timesteps", "favor_high_noise", "timesteps.bias", "favor_high_noise", AITOOLKIT),
    _one("timesteps", "favor_low_noise", "timesteps.bias", "favor_low_noise", AITOOLKIT),
    _weighting("weighted", AITOOLKIT),
    Method(
        "DOP 1", "preservation", {"regularizers.output_preservation": "1"}, AITOOLKIT, cost="output preservation"
    ),
    _one(
        "losses", "differential guidance 3", "loss.differential_guidance", "3", AITOOLKIT, cost="differential guidance"
    ),
    _one("data", "no known clips", "others", "0", AITOOLKIT),
    Method("EMA .98", "averages", {"ema.use": "true", "ema.decay": "0.98"}, SIMPLETUNER, cost="ema"),
    _one("weightings", "motion (LTD) 0.5", "loss.weighting", "motion", cost="weighting motion"),
    Method("rank 32", "adapters", {"adapter.rank": "32", "adapter.alpha": "32"}, AITOOLKIT),
    _one("dropouts", "caption dropout .05", "loop.caption_dropout", "0.05", AITOOLKIT),
    _one("dropouts", "caption dropout .1", "loop.caption_dropout", "0.1", SIMPLETUNER),
    _one("optimizers", "learning rate / 2", "optimizer.learning_rate", "7.5e-4", AITOOLKIT),
    _one("optimizers", "learning rate x 2", "optimizer.learning_rate", "3e-3", MUSUBI),
    Method(
        "polynomial 8", "schedules",
        {"schedule.kind": "polynomial", "schedule.power": "8", "schedule.floor": "5e-5"}, MUSUBI,
    ),
    Method(
        "no clipping, decay .1", "optimizers",
        {"optimizer.max_grad_norm": "0", "optimizer.weight_decay": "0.1"}, MUSUBI,
    ),
    _one("experts", "high noise expert alone", "stages", "high", AITOOLKIT),
    _one("experts", "low noise expert alone", "stages", "low"),
    _optimizer("lion", "3e-4", ("optimizer.beta2", "0.99"), advised_by=SIMPLETUNER),
    Method(
        "clip each at .01", "optimizers",
        {"optimizer.max_grad_norm": "0.01", "optimizer.clip_by": "value"}, SIMPLETUNER, cost="optimizer clip by value",
    ),
    _one("schedules", "cosine", "schedule.kind", "cosine", SIMPLETUNER),
    _sampling("auto_shift", SIMPLETUNER),
    _adapter("LoKr", "lokr", SIMPLETUNER),
    _one("routes", "TREAD 1 to -2: 0.5", "tread.routes", "1 to -2: 0.5", SIMPLETUNER, cost="tread"),
    _adapter("T-LoRA", "tlora"),
    _optimizer("adamw8bit", "1.5e-3", advised_by=AITOOLKIT),
)  # fmt: skip

_BOTH_DROPOUTS = "adapter rank and module dropout"  # in one row: no less than one of them
_REST = (
    Method("rank 4", "adapters", {"adapter.rank": "4", "adapter.alpha": "4"}),
    Method("rank 64", "adapters", {"adapter.rank": "64", "adapter.alpha": "64"}),
    Method("alpha 8 of rank 16", "adapters", {"adapter.alpha": "8"}),
    Method("alpha 32 of rank 16", "adapters", {"adapter.alpha": "32"}),
    Method("rsLoRA, rank 64", "adapters", {"adapter.rank": "64", "adapter.rslora": "true"}),
    _one("targets", "attention", "adapter.targets", "self_attn+cross_attn", cost="adapter attention"),
    _one("targets", "self attention", "adapter.targets", "self_attn", cost=""),
    _one("targets", "feed-forward", "adapter.targets", "ffn", cost=""),
    _adapter("DoRA", "dora"),
    _adapter("LoHa", "loha"),
    _adapter("OFT", "oft"),
    Method(
        "LoKr whole", "adapters", {"adapter.kind": "lokr", "adapter.lokr_full": "true", "adapter.lokr_factor": "4"},
        cost="",  # its row has another factor
    ),
    _one("dropouts", "dropout .1", "adapter.dropout", "0.1", cost="adapter dropout"),
    _one("dropouts", "rank dropout .1", "adapter.rank_dropout", "0.1", cost=_BOTH_DROPOUTS),
    _one("dropouts", "module dropout .1", "adapter.module_dropout", "0.1", cost=_BOTH_DROPOUTS),
    _one("preservation", "blank 1", "regularizers.blank_preservation", "1", cost="blank preservation"),
    _one("preservation", "weight norm 1", "regularizers.max_weight_norm", "1", cost="weight norms"),
    Method(
        "DOP 1, no known clips", "preservation",
        {"regularizers.output_preservation": "1", "others": "0"}, against="no known clips", cost="output preservation",
    ),
    Method(
        "motion (LTD) 2", "weightings", {"loss.weighting": "motion", "loss.motion_strength": "2"}, cost="weighting motion"
    ),
    _one("weightings", "frame_motion .5", "loss.weighting", "frame_motion", cost="weighting frame_motion"),
    _weighting("half_bell"),
    _weighting("cosmap"),
    _weighting("sigma_sqrt"),
    _one("timesteps", "strata 8", "timesteps.strata", "8", cost="strata"),
    _sampling("bell"),
    _sampling("beta"),
    _sampling("mode"),
    _sampling("logsnr"),
    _sampling("flux_shift"),
    _sampling("qwen_shift"),
    _sampling("qinglong_flux"),
    _sampling("sigmoid", window="squeezed"),
    _loss("mae"),
    Method("huber .1", "losses", {"loss.kind": "huber", "loss.huber_delta": "0.1"}, cost="loss huber"),
    _loss("pseudo_huber"),
    _loss("soft_l1"),
    _loss("smooth_l1"),
    _optimizer("prodigy", "1"),
    _optimizer("schedulefree", "1.5e-3"),
    _optimizer("muon", "1.5e-3", ("optimizer.beta1", "0.95")),
    _optimizer("adafactor", "1.5e-3"),
    _optimizer("ademamix", "1.5e-3"),
    _one("optimizers", "beta2 .99", "optimizer.beta2", "0.99"),
    Method(
        "LoRA+ 4", "optimizers", {"optimizer.lora_plus": "4", "optimizer.learning_rate": "7.5e-4"},
        cost="optimizer lora plus",
    ),
    _one("schedules", "linear", "schedule.kind", "linear"),
    _one("schedules", "rex", "schedule.kind", "rex"),
    _one("schedules", "warmup_stable_decay", "schedule.kind", "warmup_stable_decay"),
    _one("schedules", "warm-up of 16", "schedule.warmup_steps", "16"),
    _one("experts", "boundary .8", "boundary", "0.8"),
    _one("experts", "boundary .95", "boundary", "0.95"),
    _one("experts", "high: learning rate x 2", "high:optimizer.learning_rate", "3e-3"),
    _one("experts", "low: learning rate x 2", "low:optimizer.learning_rate", "3e-3"),
    _one("experts", "high: favor_high_noise", "high:timesteps.bias", "favor_high_noise"),
    _one("averages", "EMA .995", "ema.use", "true", cost="ema"),
    _one("data", "6 clips of each", "clips", "6"),
    _one("losses", "contrastive guidance 3", "loss.contrastive_guidance", "3", cost="contrastive guidance"),
    Method(
        "DOP adaptive .01", "preservation",
        {"regularizers.output_preservation": "1", "regularizers.preservation_target": "0.01"}, cost="adaptive preservation",
    ),
    # The rows of these two have another share of steps with more forwards.
    _one("preservation", "prior preservation", "regularizers.prior_preservation", "true", SIMPLETUNER, cost=""),
    Method("rollout 5", "rollout", {"rollout.steps": "5", "rollout.probability": "0.25"}, SIMPLETUNER, cost=""),
)  # fmt: skip

_ALL = (Method(BASELINE, "baseline"), *_ADVISED, *_REST)
METHODS = {method.name: method for method in _ALL}
assert len(METHODS) == len(_ALL), "two methods have one name, so that one of them would never be compared"
GROUPS = tuple(dict.fromkeys(method.group for method in METHODS.values()))
