"""Model files: the DiT that is trained, and a umT5 of any size."""

from typing import Any

from comfy_api.latest import io

from ..core.errors import WanTrainError
from ..core.packages import check_packages
from ..core.settings.stage import settings_from_names
from ..core.train.checks import check_holding
from ..core.train.start import needed_packages
from ..core.wan.checkpoint import inspect
from . import host
from .host import folders
from .inputs import check_known, checked
from .sockets import DitHandle, WanDit
from .text import quantity
from .widgets import inputs_of

CATEGORY = "training/Wan"
NO_FILE = "none"


class LoadWanDiT(io.ComfyNode):
    """Names the diffusion model to train on. Its weights are read by the trainer, not by this node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadWanDiT",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="Load Wan DiT (for training)",
            category=CATEGORY,
            description="Chooses the Wan diffusion model that a LoRA is trained on. Use the same file as for generation.",
            search_aliases=["wan train model", "lora training model"],
            inputs=inputs_of("LoadWanDiT", [_model_name()], before={"plan": _recovery_adapter()}),
            outputs=[WanDit.Output("dit", display_name="dit", tooltip="The model to train on, for Train LoRA Stage.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None, precision: str | None = None) -> bool | str:
        try:
            check_known(cls, {"precision": precision})  # the host leaves it to whom it hands it
            check_packages(needed_packages(None, precision or ""))
            if model_name is not None:
                inspect(folders.diffusion_model_path(model_name))
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> str:
        stat = folders.diffusion_model_path(model_name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    @checked
    def execute(cls, model_name: str, recovery_adapter: str = NO_FILE, **settings: Any) -> io.NodeOutput:
        info = inspect(folders.diffusion_model_path(model_name))
        adapter = None if recovery_adapter == NO_FILE else folders.lora_path(recovery_adapter, "recovery_adapter")
        wanted = settings_from_names(settings)
        check_holding(info, wanted.precision, wanted.memory, has_adapter=adapter is not None)
        config = info.config
        text = (
            f"{config.num_layers} blocks, width {config.dim}, {quantity(info.num_params)} parameters, "
            f"{info.weights}, {quantity(info.num_bytes)}B"
        )
        return io.NodeOutput(DitHandle(info, settings, adapter), ui={"text": [text]})


def _model_name() -> Any:
    return io.Combo.Input(
        "model_name",
        options=folders.diffusion_model_names(),
        tooltip="A Wan 2.1 or 2.2 model (T2V, I2V, FLF2V, TI2V) in the diffusion_models folder: fp16, bf16, fp32, fp8 or"
        " fp8_scaled safetensors, in ComfyUI's, the official or diffusers' layout, or GGUF. For Wan 2.2 A14B use one node for"
        " the high noise and one for the low noise file.",
    )


def _recovery_adapter() -> Any:
    return io.Combo.Input(
        "recovery_adapter",
        options=[NO_FILE, *folders.lora_names()],
        default=NO_FILE,
        optional=True,
        advanced=True,
        tooltip="For precision ara: the accuracy recovery adapter, in the loras folder. It is used in training alone.",
    )


class WanLoadUMT5(io.ComfyNode):
    """Loads a umT5 text encoder of any width: the sizes are read off the file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanLoadUMT5",
            display_name="Load umT5 (any size)",
            category=CATEGORY,
            description="Like Load CLIP with the type wan, for umT5 encoders of other sizes too, such as the nano family's, and"
            " for the official models_t5_umt5-xxl-enc-bf16.pth.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.text_encoder_names(),
                    tooltip="A umT5 encoder in the text_encoders folder. Its tokenizer is inside the file, or in a spiece.model"
                    " or another umT5 file in that folder.",
                )
            ],
            outputs=[io.Clip.Output("clip", display_name="clip", tooltip="The text encoder.")],
        )

    @classmethod
    @checked
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(host.load_umt5(folders.text_encoder_path(name)))


NODES = [LoadWanDiT, WanLoadUMT5]
