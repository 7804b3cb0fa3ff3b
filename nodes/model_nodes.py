"""Model files: the DiT that is trained, and a umT5 of any size."""

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..core.errors import WanTrainError
from ..core.wan.checkpoint import inspect
from . import host
from .sockets import DitHandle, WanDit
from .text import quantity

CATEGORY = "training/Wan"


class LoadWanDiT(io.ComfyNode):
    """Names the diffusion model to train on. Its weights are read by the trainer, not by this node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadWanDiT",
            display_name="Load Wan DiT (for training)",
            category=CATEGORY,
            description="Chooses the Wan diffusion model that a LoRA is trained on. Use the same file as for generation.",
            search_aliases=["wan train model", "lora training model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=host.diffusion_model_names(),
                    tooltip="A Wan 2.1 or 2.2 model (T2V, I2V, FLF2V, TI2V) in the diffusion_models folder: fp16, bf16, fp32,"
                    " fp8 or fp8_scaled safetensors, in ComfyUI's, the official or diffusers' layout, or GGUF. For Wan 2.2"
                    " A14B use one node for the high noise and one for the low noise file.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "bf16", "fp32"],
                    default="auto",
                    advanced=True,
                    tooltip="Number format of the frozen model while training. auto: bf16 on a GPU, fp32 on the CPU."
                    " fp32 takes twice the memory of bf16.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    advanced=True,
                    tooltip="Gradient checkpointing: keeps only the input of each block and computes the rest again in the"
                    " backward pass. Off is faster, but needs many times the memory. The result is the"
                    " same.",
                ),
            ],
            outputs=[WanDit.Output("dit", display_name="dit", tooltip="The model to train on, for Train LoRA Stage.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        if model_name is None:
            return True
        try:
            inspect(host.diffusion_model_path(model_name))
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> str:
        stat = host.diffusion_model_path(model_name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    def execute(cls, model_name: str, precision: str, checkpointing: bool) -> io.NodeOutput:
        info = inspect(host.diffusion_model_path(model_name))
        config = info.config
        text = (
            f"{config.num_layers} blocks, width {config.dim}, {quantity(info.num_params)} parameters, "
            f"{info.weights}, {quantity(info.num_bytes)}B"
        )
        return io.NodeOutput(DitHandle(info, precision, checkpointing), ui={"text": [text]})


class WanLoadUMT5(io.ComfyNode):
    """Loads a umT5 text encoder of any width: the sizes are read off the file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanLoadUMT5",
            display_name="Load umT5 (any size)",
            category=CATEGORY,
            description="Like Load CLIP with the type wan, for umT5 encoders of other sizes too, such as the demo's.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folder_paths.get_filename_list("text_encoders"),
                    tooltip="A umT5 encoder in the text_encoders folder, with its tokenizer inside (key spiece_model).",
                )
            ],
            outputs=[io.Clip.Output("clip", display_name="clip", tooltip="The text encoder.")],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(load_umt5(host.text_encoder_path(name)))


def load_umt5(path: Path) -> Any:
    """The host's CLIP of a umT5 file of any size."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_clip(
        ckpt_paths=[str(path)],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.WAN,
        model_options={"umt5xxl_model_config": host.umt5_config(state, path.name)},
    )


NODES = [LoadWanDiT, WanLoadUMT5]
