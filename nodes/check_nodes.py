"""Why has my LoRA no effect: the node that looks."""

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..core.errors import ConfigError
from ..core.lora_check.graph import Graph, graph_of
from ..core.lora_check.report import check_lora
from ..core.lora_check.workflow import loads_loras
from ..core.train.partway import checkpoint_names, named_checkpoint
from . import host
from .advice import ADVICE
from .host import folders
from .inputs import checked
from .model_nodes import CATEGORY
from .sockets import DitHandle, WanDit

log = logging.getLogger(__name__)


class CheckLoRA(io.ComfyNode):
    """Looks at a LoRA's file, at what it does to its base, and at what this workflow does with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCheckLoRA",
            display_name="Check LoRA (Wan)",
            category=CATEGORY,
            description="Why has my LoRA no effect? Says in one sentence what is wrong and what to do: names, base and expert,"
            " alpha, empty or broken layers, the change of each block, its effect on fixed noise, and what this workflow does"
            " with it.",
            search_aliases=["lora doctor", "lora no effect", "inspect lora", "analyze lora", "lora key not loaded"],
            inputs=[
                io.Combo.Input(
                    "lora_file", options=[*folders.lora_names(), *checkpoint_names(host.runs_path())],
                    tooltip="A LoRA in the loras folder, or a checkpoint of a training. Press R for new ones.",
                ),
                WanDit.Input(
                    "dit", optional=True,
                    tooltip="Its base, from Load Wan DiT: the LoRA is tried on it, one block at a time. Without it only the"
                    " file and the workflow are looked at.",
                ),
                io.Boolean.Input(
                    "look_at_workflow", default=True, tooltip="Also say what the LoRA loaders of this workflow do with it.",
                ),
            ],
            outputs=[
                io.String.Output("verdict", display_name="verdict", tooltip="One sentence, and what to do."),
                io.String.Output("report", display_name="report", tooltip="Everything that was found."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # the rest of the workflow may have changed

    @classmethod
    @checked
    def execute(cls, lora_file: str, look_at_workflow: bool, dit: DitHandle | None = None) -> io.NodeOutput:
        path = named_checkpoint(host.runs_path(), lora_file) or folders.lora_path(lora_file)
        node_id = cls.hidden.unique_id
        graph = _workflow(cls.hidden.extra_pnginfo, cls.hidden.prompt) if look_at_workflow else None
        if dit is not None:
            host.free_vram()

        def progress(text: str) -> None:
            host.raise_if_interrupted()
            host.show_text(node_id, text)

        check = check_lora(
            path,
            base=dit.info if dit else None,
            workflow=graph,
            device=torch.device(host.auto_devices()[0]),
            progress=progress,
            advice=ADVICE,
        )
        report = "\n".join(check.lines())
        log.info("%s", check.verdict)
        return io.NodeOutput(check.verdict, report, ui={"text": [report]})


def _workflow(extra: Any, prompt: Any) -> Graph | None:
    """This workflow, as the page saves it; where a program sent it, the prompt. None if it loads no LoRA, or can't be read."""
    for data in ((extra or {}).get("workflow") if isinstance(extra, dict) else None, prompt):
        try:
            if data and loads_loras(graph := graph_of(data)):
                return graph
        except ConfigError as error:
            log.warning("%s", error)
    return None


NODES = [CheckLoRA]
