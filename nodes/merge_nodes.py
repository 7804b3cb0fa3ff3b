"""From trained stages to the files that a user keeps and ships."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..core.adapters.formats import LoraFile, expert_of_name
from ..core.adapters.named_expert import is_for_both
from ..core.adapters.other_files import OtherFile, read_adapter
from ..core.adapters.post_hoc import LEAST_SIGMA, MOST_SIGMA
from ..core.adapters.ship import (
    KEY_STYLES,
    PRECISIONS,
    ShipOptions,
    Slot,
    Source,
    check_name,
    ship,
)
from ..core.errors import ConfigError, WanTrainError
from ..core.settings.job import Stage
from ..core.train.checkpoints import ADAPTER, AVERAGE
from ..core.train.chosen import AVERAGE_WIDTH, WEIGHTS, ChosenLora, ChosenWeights, choose_lora, described_lora, run_of
from ..core.train.partway import checkpoint_names, named_checkpoint
from ..core.train.result import check_lora
from ..core.words import counted
from . import host
from .host import folders
from .inputs import checked
from .model_nodes import CATEGORY
from .sockets import LoraHandle, PairHandle, WanLora, WanLoraPair

log = logging.getLogger(__name__)


class FileMaker(io.ComfyNode):
    """What the nodes that write files share."""

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            if name:
                check_name(name)
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return host.vanished()


class MergeStages(FileMaker):
    """Writes the LoRA files into the loras folder: checked, named and labelled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MergeStages",
            display_name="Merge Stages (Wan)",
            category=CATEGORY,
            description="Makes the pair that Wan 2.2 needs: NAME_high_noise and NAME_low_noise in the loras folder, where"
            " every LoRA loader finds them. Can merge a second LoRA into each, and lower the rank. Never overwrites a"
            " different LoRA of the same name: it counts up (NAME_v2).",
            search_aliases=["save lora", "wan lora pair", "merge lora"],
            inputs=_merge_inputs(),
            outputs=[
                WanLoraPair.Output("pair", display_name="pair", tooltip="For Preview LoRA."),
                io.String.Output("high_file", display_name="high_file", tooltip="Name in the loras folder."),
                io.String.Output("low_file", display_name="low_file", tooltip="Name in the loras folder."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        name: str,
        high: LoraHandle | None = None,
        low: LoraHandle | None = None,
        second_high: LoraHandle | None = None,
        second_low: LoraHandle | None = None,
        weights: ChosenWeights = "last",
        average_width: float = AVERAGE_WIDTH,
        **settings: Any,
    ) -> io.NodeOutput:
        if high and low and high.stage == low.stage == "both" and high.path == low.path:
            low = None  # the one LoRA, connected to both
        _check_sockets(high, low, second_high, second_low)
        for handle in (high, low, second_high, second_low):
            if handle:
                check_lora(handle.path)
        chosen: dict[Slot, ChosenLora] = {
            _slot(first): choose_lora(first.path, weights, average_width) for first in (high, low) if first
        }
        sources: dict[Slot, Source] = {
            _slot(first): Source(chosen[_slot(first)].path, second.path if second else None)
            for first, second in ((high, second_high), (low, second_low))
            if first
        }
        options = ShipOptions(name=name or _name_of(high or low), **settings)
        shipment = ship(folders.loras_path(), sources, options)
        files = shipment.files
        host.remember(files.values())
        lines = [*(f"{slot}: {found.note}" for slot, found in chosen.items() if found.note), *shipment.lines()]
        lines += counted_up(files.values(), options.name)
        for line in lines:
            log.info("%s", line)
        is_shared = high is not None and high.stage == "both"
        pair = PairHandle(
            high=files.get("high") or files.get("single"), low=files.get("single" if is_shared else "low")
        )
        names = [path.name if path else "" for path in (pair.high, pair.low)]
        return io.NodeOutput(pair, *names, ui={"text": ["\n".join(lines)]})


def counted_up(files: Iterable[Path], name: str) -> list[str]:
    """A sentence where another LoRA has the name that was asked for, so that these files are called NAME_v2."""
    name, *stems = (re.sub(r"_(high|low)_noise$", "", stem) for stem in (name, *(path.stem for path in files)))
    stems = dict.fromkeys(stem for stem in stems if stem != name)
    return [f"- another file is called {name}, and stays as it is: what was made now is {stem}" for stem in stems]


def _slot(lora: LoraHandle) -> Slot:
    """Whose file it becomes: one LoRA for both experts is one file."""
    return "single" if lora.stage == "both" else lora.stage


def _name_of(lora: LoraHandle | None) -> str:
    """Of the files: the training's, or that of a file; without the expert, and without the number that a file was given."""
    if lora is None:
        return ""
    if run_of(lora.path):
        return re.sub(r"_(high|low)_noise$", "", lora.name) or lora.name
    name = re.sub(r"_(high|low)_noise(?=_step\d+(_v\d+)?$)", "", lora.name)  # a copy of a checkpoint
    return re.sub(r"(_high_noise|_low_noise)?(_v\d+)?$", "", name, count=1) or lora.name


def _check_sockets(*handles: LoraHandle | None) -> None:
    high, low, second_high, second_low = handles
    if not high and not low:
        raise ConfigError("nothing is connected to high or low: connect the lora output of Train LoRA Stage.")
    for socket, handle in (("high", high), ("low", low)):
        if handle and handle.stage not in (socket, "single", "both"):
            raise ConfigError(
                f"the LoRA connected to {socket} was trained for the {handle.stage} noise stage: swap them."
            )
    if low and low.stage == "single":
        raise ConfigError("a single model's LoRA has no low noise half: connect it to high, and leave low empty.")
    if high and high.stage == "single" and low:
        raise ConfigError("high is a single model's LoRA and low is an expert's: they don't make a pair.")
    if low and low.stage == "both":
        raise ConfigError("a LoRA for both experts is one file: connect it to high, and leave low empty.")
    if high and high.stage == "both" and low:
        raise ConfigError("high is a LoRA for both experts and low is one expert's: they don't make a pair.")
    if (second_high and not high) or (second_low and not low):
        raise ConfigError("a second LoRA is connected where there is no first one.")


def _merge_inputs() -> list[Any]:
    return [
        WanLora.Input(
            "high", optional=True,
            tooltip="LoRA of the high noise stage. The LoRA of a single model, or one for both experts, goes here too; leave"
            " low empty then.",
        ),
        WanLora.Input("low", optional=True, tooltip="LoRA of the low noise stage."),
        io.String.Input(
            "name", default="",
            tooltip="Start of the file names in the loras folder. Empty: the name of the training (lora_name). Where another"
            " LoRA has that name already, the new one counts up: NAME_v2 is the second of that name.",
        ),
        io.Combo.Input(
            "precision", options=list(PRECISIONS), default="bf16", advanced=True,
            tooltip="Number format of the files. fp32 keeps every bit of the training and is twice as large.",
        ),
        io.Combo.Input(
            "key_style", options=list(KEY_STYLES), default="comfyui", advanced=True,
            tooltip="Names of the tensors. ComfyUI reads comfyui and kohya (lora_unet_); diffusers is for diffusers alone.",
        ),
        io.Int.Input(
            "rank", default=0, min=0, max=1024, advanced=True,
            tooltip="Lower the rank to this by singular value decomposition. 0: keep it.",
        ),
        io.String.Input("author", default="", advanced=True, tooltip="Written into the files."),
        io.String.Input("description", default="", advanced=True, multiline=True, tooltip="Written into the files."),
        WanLora.Input("second_high", optional=True, advanced=True, tooltip="Another high noise LoRA to merge in."),
        WanLora.Input("second_low", optional=True, advanced=True, tooltip="Another low noise LoRA to merge in."),
        io.Float.Input(
            "second_strength", default=1.0, min=-10.0, max=10.0, step=0.05, advanced=True,
            tooltip="Strength of the second LoRAs.",
        ),
        io.Combo.Input(
            "weights", options=list(WEIGHTS), default="last", optional=True, advanced=True,
            tooltip="Which weights of a run are taken. " + "; ".join(f"{name}: {text}" for name, text in WEIGHTS.items())
            + ". best needs held-out samples; keep_best of the training keeps an older one.",
        ),
        io.Float.Input(
            "average_width", default=AVERAGE_WIDTH, min=LEAST_SIGMA, max=MOST_SIGMA, step=0.01, optional=True,
            advanced=True,
            tooltip="For weights average: how wide it is, as a share of the way from the first checkpoint to the last"
            " (sigma_rel of Karras et al., 2023). Less: nearer to the last.",
        ),
    ]  # fmt: skip


class WanLoRAFromFile(io.ComfyNode):
    """Reads a LoRA file of any trainer, to be merged, resized, converted or previewed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanLoRAFromFile",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="LoRA from File (Wan)",
            category=CATEGORY,
            description="Reads LoRA files of musubi-tuner, AI-Toolkit, SimpleTuner, diffusion-pipe and this pack, and the"
            " checkpoints of trainings.",
            inputs=[
                io.Combo.Input(
                    "lora_file", options=[*folders.lora_names(), *checkpoint_names(host.runs_path())],
                    tooltip="A LoRA in the loras folder, or a checkpoint of a training (RUN / step N). Press R for new ones."
                ),
                io.Combo.Input(
                    "stage", options=["auto", "high noise", "low noise", "single model", "both experts"], default="auto",
                    advanced=True,
                    tooltip="Which model the LoRA belongs to. auto: as the file's metadata or name says.",
                ),
            ],
            outputs=[WanLora.Output("lora", display_name="lora", tooltip="For Merge Stages.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_file: str, **_: Any) -> str:
        stat = _lora_path(lora_file).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    @checked
    def execute(cls, lora_file: str, stage: str) -> io.NodeOutput:
        source = _lora_path(lora_file)
        path = described_lora(source)
        file = read_adapter(path)
        chosen = (file.expert or expert_of_name(lora_file) or _no_expert(file)) if stage == "auto" else stage.split()[0]
        text = f"{counted(len(file.modules), 'module')}, rank {'/'.join(map(str, file.ranks))}, {file.style} keys, {chosen}"
        text = "\n".join([text, *(f"- {note}" for note in file.notes)])
        run = run_of(source) if source.name in (ADAPTER, AVERAGE) else None
        step = int(source.parent.name.rpartition("-")[2]) if run else 0
        name = f"{run.read_job().name}_step{step}" if run else path.stem
        return io.NodeOutput(LoraHandle(path, chosen, name, step), ui={"text": [text]})  # type: ignore[arg-type]


def _no_expert(file: LoraFile | OtherFile) -> Stage:
    """Of a file that is no one expert's."""
    return "both" if is_for_both(file.metadata) else "single"


def _lora_path(name: str) -> Path:
    return named_checkpoint(host.runs_path(), name) or folders.lora_path(name)


NODES = [MergeStages, WanLoRAFromFile]
