"""Model files: the DiT that is trained, and a umT5 of any size."""

from pathlib import Path
from typing import Any, get_args

import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..core.errors import ConfigError, WanTrainError
from ..core.packages import check_packages
from ..core.paths import shown
from ..core.settings.memory import Attention, Compile, CudaGraphs, MasterKind, MemoryOptions, PlanMode
from ..core.settings.precision import PRECISIONS
from ..core.settings.stage import settings_from_names
from ..core.train.prepare import check_holding
from ..core.train.start import needed_packages
from ..core.wan.checkpoint import inspect
from . import folders, host
from .inputs import checked
from .sockets import DitHandle, WanDit
from .text import quantity

CATEGORY = "training/Wan"
NO_FILE = "none"


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
                    options=folders.diffusion_model_names(),
                    tooltip="A Wan 2.1 or 2.2 model (T2V, I2V, FLF2V, TI2V) in the diffusion_models folder: fp16, bf16, fp32,"
                    " fp8 or fp8_scaled safetensors, in ComfyUI's, the official or diffusers' layout, or GGUF. For Wan 2.2"
                    " A14B use one node for the high noise and one for the low noise file.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    advanced=True,
                    tooltip="Number format of the frozen model while training. auto: bf16 on a GPU, fp32 on the CPU. fp8 and"
                    " int8 take half the memory of bf16, nf4 (bitsandbytes) and int4_svd a quarter; the LoRA fits the"
                    " unquantized model all the same. fp8_compute also multiplies in fp8 (RTX 40, H100 and newer). ara is"
                    " for an accuracy recovery adapter of AI-Toolkit. GGUF files stay as they are.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    advanced=True,
                    tooltip="Gradient checkpointing: keeps only the input of each block and computes the rest again in the"
                    " backward pass. Off is faster, but needs many times the memory. The result is the same. On, a plan"
                    " may still go without for clips that are small enough.",
                ),
                *_memory_inputs(),
            ],
            outputs=[WanDit.Output("dit", display_name="dit", tooltip="The model to train on, for Train LoRA Stage.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None, precision: str | None = None) -> bool | str:
        try:
            check_packages(needed_packages(None, precision or ""))
            if precision is not None and precision not in PRECISIONS:  # the host leaves it to whom it hands it
                raise ConfigError(f"precision is '{shown(precision)}': choose one of {', '.join(PRECISIONS)}.")
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


def _memory_inputs() -> list[Any]:
    """New inputs come last and are optional: saved workflows and prompts stay valid."""
    default = MemoryOptions()
    return [
        io.Int.Input(
            "streamed_blocks", default=default.streamed_blocks, min=0, max=1000, optional=True, advanced=True,
            tooltip="Blocks whose frozen weights stay in main memory and visit the GPU when they are needed: less GPU memory"
            " for some time. A 14B model has 40 blocks, 0.7 GB each in bf16, 0.35 GB in fp8. The result is the same.",
        ),
        io.Combo.Input(
            "stream_from", options=list(get_args(MasterKind)), default=default.stream_from, optional=True, advanced=True,
            tooltip="Where streamed blocks are kept. pinned: in main memory that the GPU reads by itself, the fastest."
            " pageable: in ordinary memory. mapped: in files in output/wan_train/cache, for machines short of memory.",
        ),
        io.Boolean.Input(
            "offload_inputs", default=default.offload_inputs, optional=True, advanced=True,
            tooltip="Block inputs, which checkpointing keeps, wait for the backward pass in main memory: less GPU memory for"
            " long clips. The result is the same.",
        ),
        io.Int.Input(
            "keep_attention", default=default.keep_attention, min=0, max=1000, optional=True, advanced=True,
            tooltip="Blocks that keep the result of their self-attention for the backward pass instead of computing it again:"
            " faster, for one block input's worth of memory each. The result is the same.",
        ),
        io.Combo.Input(
            "attention", options=list(get_args(Attention)), default=default.attention, optional=True, advanced=True,
            tooltip="How attention is computed. auto: the fastest of those installed whose gradients are right on this GPU,"
            " measured at the start. default: as PyTorch chooses. Or one by its name.",
        ),
        io.Combo.Input(
            "compile", options=list(get_args(Compile)), default=default.compile, optional=True, advanced=True,
            tooltip="How the model's blocks run. auto: kernels on a GPU where Triton works (Windows: triton-windows), else off."
            " kernels: our own, ready for any size of clips. static: torch.compile, once for each size of clips; dynamic: once"
            " for all sizes; the first steps take long then. off: PyTorch's own operators, slower and with more memory.",
        ),
        io.Combo.Input(
            "recovery_adapter", options=[NO_FILE, *folders.lora_names()], default=NO_FILE, optional=True, advanced=True,
            tooltip="For precision ara: the accuracy recovery adapter, in the loras folder. It is used in training alone.",
        ),
        io.Combo.Input(
            "plan", options=list(get_args(PlanMode)), default=default.plan, optional=True, advanced=True,
            tooltip="auto: before a run, its GPU is measured, and checkpointing, streamed_blocks, stream_from, mapped_blocks,"
            " offload_inputs, offload_optimizer, keep_attention, keep_linears, split_blocks and ffn_pieces are chosen so that"
            " the steps are fast and fit into memory; those that are not at their default stay as they are. manual: all as they"
            " are set. The result is the same.",
        ),
        io.Float.Input(
            "budget_gb", default=default.budget_gb, min=0.0, max=10000.0, step=0.5, optional=True, advanced=True,
            tooltip="Most GPU memory in GB that a run may take, to leave room for other programs. 0: what is free.",
        ),
        io.Boolean.Input(
            "split_blocks", default=default.split_blocks, optional=True, advanced=True,
            tooltip="Recomputes the three parts of a block one by one: about half the GPU memory that a block's backward pass"
            " takes, for a little more time. The result is the same.",
        ),
        io.Int.Input(
            "keep_linears", default=default.keep_linears, min=0, max=1000, optional=True, advanced=True,
            tooltip="Blocks that keep what their linear layers give, and their self-attention, instead of computing it again:"
            " faster still, for nine block inputs' worth of memory each in a 14B model. Not with split_blocks. The result is"
            " the same.",
        ),
        io.Int.Input(
            "ffn_pieces", default=default.ffn_pieces, min=1, max=64, optional=True, advanced=True,
            tooltip="Pieces in which the tokens go through a block's feed-forward, one after another: 4 take a quarter to a"
            " third less of what a block's backward pass takes, at hardly any cost in time for long clips. Not with"
            " split_blocks. The result is the same up to rounding.",
        ),
        io.Int.Input(
            "mapped_blocks", default=default.mapped_blocks, min=0, max=1000, optional=True, advanced=True,
            tooltip="Of the streamed blocks, how many come from files in output/wan_train/cache, for a machine a little short"
            " of memory: they are read while other blocks compute. Not with stream_from mapped, where all come from files."
            " The result is the same.",
        ),
        io.Combo.Input(
            "cuda_graphs", options=list(get_args(CudaGraphs)), default=default.cuda_graphs, optional=True, advanced=True,
            tooltip="auto: where all batches are small (images) and the whole model is on the GPU, the kernels of a step are"
            " recorded once and launched together, for which the GPU else has to wait. off: never. The result is the same.",
        ),
        io.Boolean.Input(
            "offload_optimizer", default=default.offload_optimizer, optional=True, advanced=True,
            tooltip="AdamW's two moments, twice the size of the LoRA in fp32, wait in main memory and pass through the GPU at"
            " each update: for high ranks on small cards. No effect on adamw8bit. The result is the same.",
        ),
    ]  # fmt: skip


class WanLoadUMT5(io.ComfyNode):
    """Loads a umT5 text encoder of any width: the sizes are read off the file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanLoadUMT5",
            display_name="Load umT5 (any size)",
            category=CATEGORY,
            description="Like Load CLIP with the type wan, for umT5 encoders of other sizes too, such as the nano family's.",
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
    @checked
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(load_umt5(folders.text_encoder_path(name)))


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
