"""Everything about the training of one model that is a matter of choice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ..errors import ConfigError
from ..facts import BOUNDARY_I2V_A14B, BOUNDARY_T2V_A14B
from ..limits import MAX_WORD
from ..serial import from_dict
from .groups import Groups
from .option import MODEL, TRAIN, Option, Options, Widget, all_options, option, without_effect
from .precision import METHODS, PRECISIONS, Precision
from .track import TrackOptions

Stage = Literal["high", "low", "single", "both"]  # both: one LoRA through both experts, by turns


@dataclass(frozen=True, kw_only=True)
class StageSettings(Groups, Options):
    """Everything about the training of one model that is a matter of choice."""

    precision: Precision = option(
        "auto",
        help="Number format (quantization) of the frozen model while training.",
        more="auto: bf16 on a GPU, fp32 on the CPU. The LoRA fits the unquantized model all the same. GGUF files stay as"
        " they are.",
        page="See below.",
        values=PRECISIONS,
        methods=METHODS,
        widget=Widget(MODEL, "precision", 1, is_required=True),
        musubi="fp8_base",
        aitoolkit="model.qtype",
        simpletuner="base_model_precision",
        diffusion_pipe="model.transformer_dtype",
    )
    boundary: float = option(
        0.0,
        help="Noise level (0 to 1) where the high noise expert hands over to the low one.",
        more="Of Wan 2.2 A14B; not used by a single model.",
        zero=f"the official one, {BOUNDARY_T2V_A14B:g} for T2V, {BOUNDARY_I2V_A14B:g} for I2V",
        least=0.0,
        most=1.0,
        in_key=False,  # the window of sigmas that comes of it is
        widget=Widget(TRAIN, "boundary", 11, is_required=True, most=0.999, step=0.005, round=0.001),
        musubi="timestep_boundary",
    )
    epochs: int = option(
        0,
        help="Length of the run in epochs, in place of steps.",
        most=1_000_000,
        zero="steps decides",
        unit="epochs",
        in_key=False,  # the steps that come of it are
        widget=Widget(TRAIN, "epochs", 27, most=100_000),
        musubi="max_train_epochs",
        simpletuner="num_train_epochs",
        diffusion_pipe="epochs",
    )
    device: str = option(
        "auto",
        help="Where to train.",
        more="auto takes a free GPU: with two GPUs both experts train at the same time, with one GPU one after the other. all,"
        " or a list such as cuda:0,cuda:1, trains the run over several GPUs: each trains batches of its own in every step, so a"
        " step has as many samples more.",
        page="See [Many GPUs](https://github.com/ComfyUI-WanTrain/ComfyUI-WanTrain/blob/main/docs/many-gpus.md).",
        in_key=False,
        widget=Widget(TRAIN, "device", 26, is_required=True),
        aitoolkit="device",
    )
    allow_other_expert: bool = option(
        False,
        help="Train on a model file whose name says that it is the other expert's.",
        more="Off: a high noise file in the low noise stage is refused, and the other way round.",
        in_key=False,  # the file's content is
        widget=Widget(TRAIN, "allow_other_expert", 90),
    )

    alternate_every: int = option(
        0,
        help="Switch between the two experts every so many steps on one GPU: both LoRAs grow together.",
        more="Set it for both experts. The weights of the expert that waits lie in main memory, or stay on the GPU where both"
        " fit. The LoRAs are the same, to the bit, as those of one expert after the other.",
        page="What switching costs is told at the start. With a GPU for each expert nothing is switched.",
        most=1_000_000,
        zero="one expert after the other",
        unit="steps",
        in_key=False,
        widget=Widget(TRAIN, "alternate_every", 200, most=100_000),
        aitoolkit="train.switch_boundary_every",
    )

    shared_lora: bool = option(
        False,
        help="Train one LoRA through both experts of Wan 2.2 A14B: one set of weights, one file, loaded on both.",
        more="Steps alternate between the experts (alternate_every), each at its own noise levels; steps counts those of both"
        " together. Off: each expert has a LoRA of its own. The frozen expert that waits lies in main memory, or on the GPU"
        " where both fit.",
        page="See *One LoRA for both experts* below.",
        in_key=False,  # the stage is
        widget=Widget(TRAIN, "shared_lora", 201),
    )

    track: TrackOptions = field(default_factory=TrackOptions)  # not of the job, which a LoRA's metadata hold

    def __post_init__(self) -> None:
        window = self.timesteps.sigma_min, self.timesteps.sigma_max
        if window != (0.0, 1.0):
            raise ConfigError(
                f"timesteps has the window {window[0]:g} to {window[1]:g}, but the window comes from the stage and"
                " 'boundary': leave sigma_min and sigma_max out."
            )
        super().__post_init__()
        if self.shared_lora and not self.alternate_every:
            raise ConfigError(
                "shared_lora trains one LoRA through both experts by turns, but alternate_every is 0: set it to 10, or to 1"
                " where both experts fit on the GPU."
            )
        if len(self.device) > MAX_WORD:
            raise ConfigError(f"device is a text of {len(self.device)} characters: use auto, all, or cuda:0.")

    def warnings(self, stage: Stage) -> list[str]:
        """What was chosen and a job no longer tells: options that have no effect in this stage, one sentence each."""
        found: list[str] = without_effect(self.track)
        if stage == "single" and self.boundary:
            found.append("boundary has no effect with a single model: it is where the experts of Wan 2.2 A14B meet.")
        if stage == "single" and self.allow_other_expert:
            found.append(
                "allow_other_expert has no effect with a single model, which has one file for all noise levels."
            )
        if stage == "single" and self.alternate_every:
            found.append(
                "alternate_every has no effect with a single model: it switches between the experts of Wan 2.2 A14B."
            )
        if stage == "single" and self.shared_lora:
            found.append("shared_lora has no effect with a single model, which has no second expert.")
        return found


def stage_options() -> dict[str, Option]:
    """Every option of a stage by what sentences, nodes and presets call it."""
    return {item.label: item for item in all_options(StageSettings)}


def settings_from_names(values: Mapping[str, Any]) -> StageSettings:
    """Settings by their names on nodes; what is absent has its default. ConfigError for an unknown name or type."""
    return from_dict(StageSettings, nest(values), "settings")


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names on nodes, as the tables of a recipe: {"rank": 4} to {"adapter": {"rank": 4}}.

    Values are those of the widgets, also of earlier versions: "on" of a switch, -1 for none, the name of a set of targets.
    """
    tables: dict[str, Any] = {}
    known = stage_options()
    for name, value in values.items():
        item = known.get(name)
        if item is None:
            tables[name] = value  # refused by name where the tables are read
            continue
        if item.widget is not None:
            value = _meaning(item, item.widget, value)
        group = tables.setdefault(item.group, {}) if item.group else tables
        group[item.name] = list(cast(tuple[str, ...], value)) if isinstance(value, tuple) else value
    return tables


def _meaning(item: Option, widget: Widget, value: Any) -> Any:
    found = widget.meaning(value)
    if item.is_list and not isinstance(found, tuple):
        raise ConfigError(f"{item.label} is '{found}': choose one of {', '.join(widget.words)}.")
    return cast(Any, found)
