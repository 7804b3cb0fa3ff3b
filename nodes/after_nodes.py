"""What one does with LoRAs after the run: merged, changed, extracted from a fine-tune, folded into a model."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io

from ..core.adapters.afterwards import Changes, FileOptions, WrittenFile, change_file, merge_files
from ..core.adapters.combine import METHODS, MergeOptions
from ..core.adapters.drafts import KEY_STYLES, PRECISIONS
from ..core.adapters.extracted import ExtractOptions, extract_file
from ..core.adapters.fold import FOLD_PRECISIONS, fold
from ..core.errors import ConfigError
from ..core.names import check_name
from ..core.wan.checkpoint import inspect
from ..core.words import counted
from . import host
from .host import folders
from .inputs import checked
from .merge_nodes import FileMaker, counted_up
from .model_nodes import CATEGORY
from .sockets import LoraHandle, WanLora

log = logging.getLogger(__name__)
_MOST = 4


class MergeLoRAs(FileMaker):
    """Several LoRAs of one expert as one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanMergeLoRAs",
            display_name="Merge LoRAs (Wan)",
            category=CATEGORY,
            description="Makes one LoRA of two to four, each with its strength: the plain sum, or TIES and DARE, which keep"
            " LoRAs from getting in each other's way. Merge those of one expert; for a pair use the node twice.",
            search_aliases=["merge lora", "ties", "dare", "combine lora", "svd"],
            inputs=[*_lora_inputs(), *_merge_inputs(), *_file_inputs("merged_lora")],
            outputs=_lora_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls, lora_1: LoraHandle, lora_2: LoraHandle, lora_3: LoraHandle | None = None, lora_4: LoraHandle | None = None,
        **settings: Any,
    ) -> io.NodeOutput:  # fmt: skip
        loras = {1: lora_1, 2: lora_2, 3: lora_3, 4: lora_4}
        sources = [(lora.path, settings[f"strength_{number}"]) for number, lora in loras.items() if lora]
        is_linear = settings["method"] == "linear"
        merging = MergeOptions(
            method=settings["method"],
            rank=0 if is_linear else settings["rank"],
            energy=None if is_linear else settings["energy"] or None,
            density=settings["density"],
            seed=settings["seed"],
        )
        device, progress = torch.device(host.auto_devices()[0]), _progress(cls.hidden.unique_id, "merging")
        writing = _writing(settings)
        merged = merge_files(folders.loras_path(), sources, merging, writing, device=device, progress=progress)
        return _done(merged, writing.name)


class ChangeLoRA(FileMaker):
    """A LoRA of lower rank, without some blocks, or in other names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanChangeLoRA",
            display_name="Change LoRA (Wan)",
            category=CATEGORY,
            description="Lowers a LoRA's rank (by number, or by what is kept), leaves out blocks and layers, changes its"
            " strength for good, and converts between the names of ComfyUI, kohya and diffusers. Writes a new file.",
            search_aliases=["resize lora", "convert lora", "strip blocks", "prune lora", "block weight"],
            inputs=[WanLora.Input("lora", tooltip="From LoRA from File or a training."), *_change_inputs(),
                    *_file_inputs("changed_lora")],
            outputs=_lora_outputs(),
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, lora: LoraHandle, **settings: Any) -> io.NodeOutput:
        names = ("rank", "energy", "drop_blocks", "drop_layers", "strength")
        changes = Changes(**{name: settings[name] for name in names})
        writing = _writing(settings)
        return _done(change_file(folders.loras_path(), lora.path, changes, writing), writing.name)


class ExtractLoRA(FileMaker):
    """The difference of two models as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanExtractLoRA",
            display_name="Extract LoRA (Wan)",
            category=CATEGORY,
            description="Makes a LoRA of the difference between a fine-tuned model and its base, layer by layer: needs memory"
            " for two layers, not for two models.",
            search_aliases=["extract lora", "lora from checkpoint", "difference"],
            inputs=[
                io.Combo.Input("model_name", options=folders.diffusion_model_names(),
                               tooltip="The base: the model that the fine-tune began from."),
                io.Combo.Input("tuned_model", options=folders.diffusion_model_names(), tooltip="The fine-tuned model."),
                io.Int.Input("rank", default=64, min=1, max=1024, tooltip="Of the LoRA, at most."),
                _energy(),
                io.Boolean.Input("all_linears", default=False, advanced=True,
                                 tooltip="Also the layers outside the blocks: text, time and image embeddings."),
                *_file_inputs("extracted_lora"),
            ],
            outputs=_lora_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, model_name: str, tuned_model: str, **settings: Any) -> io.NodeOutput:
        base = folders.diffusion_model_path(model_name)
        tuned = folders.diffusion_model_path(tuned_model, "tuned_model")
        options = ExtractOptions(**{name: settings[name] for name in ("rank", "energy", "all_linears")})
        device, progress = torch.device(host.auto_devices()[0]), _progress(cls.hidden.unique_id, "extracting")
        folder, writing = folders.loras_path(), _writing(settings)
        made = extract_file(folder, base, tuned, options, writing, device=device, progress=progress)
        return _done(made, writing.name)


class FoldLoRA(FileMaker):
    """A model with a LoRA in its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanFoldLoRA",
            display_name="Fold LoRA into Model (Wan)",
            category=CATEGORY,
            description="Adds a LoRA of any kind to a model for good, and writes the model into diffusion_models. The result"
            " needs no LoRA loader. Reads and writes layer by layer.",
            search_aliases=["bake lora", "merge lora into checkpoint", "fuse lora", "fp8 scaled"],
            inputs=[
                WanLora.Input("lora", tooltip="From LoRA from File or a training."),
                io.Combo.Input("model_name", options=folders.diffusion_model_names(), tooltip="The model that it is added to."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Of the LoRA."),
                io.Combo.Input(
                    "precision", options=list(FOLD_PRECISIONS), default="same",
                    tooltip="Of the blocks' layers. fp8_scaled has a scale for each layer; same: as the model's file.",
                ),
                io.String.Input("name", default="folded_model", tooltip="Of the file. Nothing is overwritten: a number is"
                                " added to the name."),
            ],
            outputs=[io.String.Output("model_file", display_name="model_file", tooltip="Name in diffusion_models.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, lora: LoraHandle, model_name: str, strength: float, precision: str, name: str) -> io.NodeOutput:
        check_name(name)
        model, folder = folders.diffusion_model_path(model_name), folders.diffusion_models_path()
        stems = (name if number == 1 else f"{name}_v{number}" for number in range(1, 10_000))
        out = next(path for stem in stems if not (path := folder / f"{stem}.safetensors").exists())
        progress = _progress(cls.hidden.unique_id, "writing")
        folded = fold(inspect(model), [(lora.path, strength)], out, precision=precision, progress=progress)
        host.remember([out])
        lines = [f"{out.name}: {counted(folded.num_changed, 'layer')} changed", *(f"- {note}" for note in folded.notes)]
        lines += counted_up([out], name)
        return io.NodeOutput(out.name, ui={"text": ["\n".join(lines)]})


def _progress(node_id: Any, what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        host.raise_if_interrupted()
        host.show_progress(node_id, done, total)
        host.show_text(node_id, f"{what}: {done} / {total}")

    return show


def _writing(settings: dict[str, Any]) -> FileOptions:
    if not settings["name"]:
        raise ConfigError("name is empty: write how the file shall be called.")
    return FileOptions(**{name: settings[name] for name in ("name", "precision", "key_style")})


def _done(written: WrittenFile, name: str) -> io.NodeOutput:
    host.remember([written.path])
    lines = [*written.lines, *counted_up([written.path], name)]
    for line in lines:
        log.info("%s", line)
    handle = LoraHandle(written.path, written.slot, written.path.stem)
    return io.NodeOutput(handle, written.path.name, ui={"text": ["\n".join(lines)]})


def _lora_outputs() -> list[Any]:
    return [
        WanLora.Output("lora", display_name="lora", tooltip="For Merge Stages, and for these nodes again."),
        io.String.Output("lora_file", display_name="lora_file", tooltip="Name in the loras folder."),
    ]


def _lora_inputs() -> list[Any]:
    found: list[Any] = []
    for number in range(1, _MOST + 1):
        found.append(WanLora.Input(f"lora_{number}", optional=number > 2, tooltip="From LoRA from File or a training."))
    for number in range(1, _MOST + 1):
        found.append(
            io.Float.Input(
                f"strength_{number}", default=1.0, min=-10.0, max=10.0, step=0.05, advanced=number > 2,
                tooltip=f"Of lora_{number}.",
            )
        )  # fmt: skip
    return found


def _merge_inputs() -> list[Any]:
    methods = "; ".join(f"{name}: {text}" for name, text in METHODS.items())
    return [
        io.Combo.Input("method", options=list(METHODS), default="linear", tooltip=f"How they are merged. {methods}."),
        io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Of the result. 'linear' adds the ranks instead."),
        _energy(),
        io.Float.Input("density", default=0.5, min=0.01, max=1.0, step=0.01, advanced=True,
                       tooltip="Share of the numbers that TIES and DARE keep."),
        io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=io.ControlAfterGenerate.fixed,
                     advanced=True, tooltip="Of what DARE drops."),
    ]  # fmt: skip


def _change_inputs() -> list[Any]:
    return [
        io.Int.Input("rank", default=0, min=0, max=1024, tooltip="Lower the rank to this, layer by layer. 0: keep it."),
        _energy(),
        io.String.Input("drop_blocks", default="", tooltip="Blocks to leave out, such as 0-9, 15."),
        io.String.Input("drop_layers", default="", multiline=True, advanced=True,
                        tooltip="Layers to leave out: a part of their name or a regular expression a line, such as ffn."),
        io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, advanced=True,
                       tooltip="Folded into the file: at strength 1 it then has the effect that it had at this one."),
    ]  # fmt: skip


def _energy() -> Any:
    return io.Float.Input(
        "energy", default=0.0, min=0.0, max=1.0, step=0.005, advanced=True,
        tooltip="Keep the fewest singular values whose squares hold this share, such as 0.99; the rank is the limit. 0: off.",
    )  # fmt: skip


def _file_inputs(name: str) -> list[Any]:
    return [
        io.String.Input("name", default=name, tooltip="Start of the file's name in the loras folder; _high_noise or _low_noise"
                        " follows where the LoRA is an expert's. Nothing is overwritten: a number is added to the name."),
        io.Combo.Input("precision", options=list(PRECISIONS), default="bf16", advanced=True, tooltip="Number format."),
        io.Combo.Input("key_style", options=list(KEY_STYLES), default="comfyui", advanced=True,
                       tooltip="Names of the tensors. ComfyUI reads comfyui and kohya; diffusers is for diffusers alone."),
    ]  # fmt: skip


NODES = [MergeLoRAs, ChangeLoRA, ExtractLoRA, FoldLoRA]
