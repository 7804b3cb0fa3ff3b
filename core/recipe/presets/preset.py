"""What a preset is: values by the names of the nodes' widgets, and where each comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...settings.dataset import Conditioning, DatasetOptions
from ...settings.stage import nest

Says = Mapping[str, tuple[Any, str]]  # name of a widget -> its value, and the sentence where that comes from

DATASET, MODEL, LATENTS, TRAIN = "DatasetFromFolder", "LoadWanDiT", "CacheLatents", "TrainLoRAStage"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for the inputs of DatasetFromFolder, LoadWanDiT and TrainLoRAStage; what is absent has its default."""

    title: str
    description: str
    kind: str = ""  # what is trained: the first question of `wantrain run`
    family: str = "t2v-a14b"  # the models that it is for: t2v-a14b, i2v-a14b or t2v-1.3b
    card_gb: int = 0  # memory of the GPU that it is made for; 0: any
    dataset: dict[str, Any] = field(default_factory=dict[str, Any])
    model: dict[str, Any] = field(default_factory=dict[str, Any])
    train: dict[str, Any] = field(default_factory=dict[str, Any])
    conditioning: Conditioning = "none"  # the frames that the model is given: condition_on of Cache Latents
    epochs: int = 0  # `steps` is the one setting that depends on the data; 0: as `train` says
    lora_names: dict[str, str] = field(default_factory=dict[str, str])  # stage -> name of the file, with {name} in it
    why: dict[str, str] = field(default_factory=dict[str, str])  # widget -> where its value comes from
    source: str = ""  # what the sentences of `why` name by numbers
    asks: str = ""  # what the user has to give, that no preset knows

    def tables(self) -> dict[str, Any]:
        """The preset as tables of a recipe, without folder, models and name."""
        return {
            "dataset": dict(self.dataset),
            **nest({**self.model, **self.train}),
            **({"epochs": self.epochs} if self.epochs else {}),
            **({"conditioning": self.conditioning} if self.conditioning != "none" else {}),
        }

    def dataset_options(self) -> DatasetOptions:
        """Its dataset, with some trigger word, which class_word needs."""
        return DatasetOptions(trigger_word="trigger", **self.dataset)

    def values(self) -> dict[str, dict[str, Any]]:
        """What it puts into the widgets of which nodes."""
        return {
            DATASET: self.dataset,
            MODEL: self.model,
            **({LATENTS: {"condition_on": self.conditioning}} if self.conditioning != "none" else {}),
            TRAIN: {**self.train, "epochs": self.epochs},
        }


def told(*tables: Says) -> dict[str, str]:
    """Where the values of these tables come from; of a name that comes again, the last counts."""
    return {name: why for table in tables for name, (_, why) in table.items()}


def plain(*tables: Says) -> dict[str, Any]:
    """The values of these tables; of a name that comes again, the last counts."""
    return {name: value for table in tables for name, (value, _) in table.items()}
