"""A LoRA file that holds both experts, as two files."""

import logging
from typing import Any

from comfy_api.latest import io

from ..core.adapters.drafts import KEY_STYLES, PRECISIONS
from ..core.adapters.split_file import SAME, SplitOptions, split_file
from . import host
from .host import folders
from .inputs import checked
from .merge_nodes import FileMaker, counted_up
from .model_nodes import CATEGORY
from .sockets import LoraHandle, WanLora

log = logging.getLogger(__name__)


class SplitLoRA(FileMaker):
    """Two LoRAs that lie in one file, each as a file of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanSplitLoRA",
            display_name="Split LoRA (Wan)",
            category=CATEGORY,
            description="Makes two files of a LoRA file that holds both experts of Wan 2.2, as diffusers, AI-Toolkit and"
            " OneTrainer can write it: NAME_high_noise and NAME_low_noise, which every LoRA loader reads.",
            search_aliases=["split lora", "high low lora", "transformer_2", "two experts in one file", "convert lora"],
            inputs=[
                io.Combo.Input("lora_file", options=folders.lora_names(),
                               tooltip="A LoRA file in the loras folder that holds both LoRAs. Press R for new ones."),
                io.String.Input("name", default="", tooltip="Start of the files' names in the loras folder. Empty: that of the"
                                " file. Nothing is overwritten: a number is added to the name."),
                io.Combo.Input("precision", options=[SAME, *PRECISIONS], default=SAME, advanced=True,
                               tooltip="Number format of the files. same: as in the file that is split."),
                io.Combo.Input("key_style", options=list(KEY_STYLES), default="comfyui", advanced=True,
                               tooltip="Names of the tensors. ComfyUI reads comfyui and kohya; diffusers is for diffusers"
                               " alone."),
            ],
            outputs=[
                WanLora.Output("high", display_name="high", tooltip="The LoRA of the high noise expert."),
                WanLora.Output("low", display_name="low", tooltip="The LoRA of the low noise expert."),
                io.String.Output("high_file", display_name="high_file", tooltip="Name in the loras folder."),
                io.String.Output("low_file", display_name="low_file", tooltip="Name in the loras folder."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_file: str = "", **_: Any) -> str:  # type: ignore[override]
        stat = folders.lora_path(lora_file).stat()
        return f"{host.vanished()} {stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    @checked
    def execute(cls, lora_file: str, **settings: Any) -> io.NodeOutput:
        options = SplitOptions(**{name: settings[name] for name in ("name", "precision", "key_style")})
        source = folders.lora_path(lora_file)
        high, low = split_file(folders.loras_path(), source, options)
        host.remember([high.path, low.path])
        lines = [*high.lines, *low.lines, *counted_up([high.path, low.path], options.name or source.stem)]
        for line in lines:
            log.info("%s", line)
        handles = (LoraHandle(made.path, made.slot, made.path.stem) for made in (high, low))
        return io.NodeOutput(*handles, high.path.name, low.path.name, ui={"text": ["\n".join(dict.fromkeys(lines))]})


NODES = [SplitLoRA]
