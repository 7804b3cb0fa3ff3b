"""A LoRA that is added to the weights of the base while they are read, before they are brought into a precision."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError
from .formats import LoraModule
from .other_files import OtherModule, read_adapter
from .transfer import Shapes, transfer_report


@dataclass(frozen=True)
class MergedBase:
    """What is added, by official path of the layer, and the sentences that a user should read."""

    modules: dict[str, LoraModule | OtherModule]
    strength: float
    notes: tuple[str, ...]

    def changes(self, layer: str) -> bool:
        """Whether something is added to the layer's weight."""
        return layer in self.modules

    def __call__(self, layer: str, weight: Tensor) -> Tensor:
        """The weight with what is added to it, float32, in the shape of `weight` [out, in, ...] float32."""
        module = self.modules[layer]
        flat = weight.flatten(1)
        if isinstance(module, LoraModule):
            delta, share = (module.up.to(flat) * module.scale) @ module.down.to(flat), self.strength
        else:
            delta, share = module.to(flat.device).delta(flat), module.share_at(self.strength)
        return flat.add(delta, alpha=share).view_as(weight)


def merged_base(path: str, strength: float, shapes: Shapes) -> MergedBase:
    """Read the file, of any kind. ModelFileError if it can't be read, ConfigError if nothing of it fits a model of `shapes`."""
    file = read_adapter(path)
    report = transfer_report(file, shapes)
    if not report.placed:
        raise ConfigError(
            f"merge_into_base is {Path(path).name}, of which nothing fits this model: choose another file."
        )
    said = f"{Path(path).name} is added to the model's weights with strength {strength:g}: load it beside the new LoRA, too."
    return MergedBase({name: file.modules[name] for name in report.placed}, strength, (said, *report.notes))
