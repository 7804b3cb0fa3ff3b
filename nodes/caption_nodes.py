"""Captions that a model writes, before a dataset is read."""

import logging
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..core.captioning.folder import Captioned, Describer, caption_folder
from ..core.captioning.local_model import LocalModel, check_folder
from ..core.data.links import files_below
from ..core.errors import ConfigError, WanTrainError
from ..core.settings.captioning import CaptioningOptions
from . import host
from .host import folders
from .inputs import check_known, checked
from .model_nodes import CATEGORY
from .widgets import inputs_of

log = logging.getLogger(__name__)
_NONE = "none"
_SHOWN = 10  # captions on the node


class CaptionDataset(io.ComfyNode):
    """Writes a text file beside each picture and clip of a folder that has none. Output: the folder's name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CaptionDataset",
            display_name="Caption Dataset (Wan)",
            category=CATEGORY,
            description="Has a vision-language model describe each image and clip that has no caption, and writes the text file"
            " beside it. What a person wrote or changed is never replaced. Connect it to the folder of Dataset from Folder.",
            search_aliases=["auto caption", "captioning", "vlm", "qwen vl", "describe video", "label dataset"],
            inputs=inputs_of("CaptionDataset", [_folder()], last=_models()),
            outputs=[
                io.Combo.Output("folder", display_name="folder", tooltip="For the folder of Dataset from Folder."),
                io.String.Output("report", display_name="report", tooltip="What was written, and what was not."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, model_folder: str | None = None) -> bool | str:
        """None: comes over a wire, and is checked when it is there."""
        try:
            check_known(cls, {"folder": folder, "model_folder": model_folder})
            if folder is not None:
                folders.resolve_dataset_folder(folder)
            if model_folder not in (None, _NONE):
                check_folder(folders.language_model_path(model_folder))
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_: Any) -> Any:
        if folder is None:
            return float("nan")  # over a wire: what lies there may have changed
        stats = [(str(p), p.stat()) for p in files_below(folders.resolve_dataset_folder(folder))]
        return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    @classmethod
    @checked
    def execute(cls, folder: str, model_folder: str = _NONE, clip: Any = None, **settings: Any) -> io.NodeOutput:
        path = folders.resolve_dataset_folder(folder)
        options = CaptioningOptions(**settings)
        node_id = cls.hidden.unique_id
        given = None if model_folder == _NONE else folders.language_model_path(model_folder)
        load = _loader(given, clip)

        def on_file(done: int, total: int, name: str) -> None:
            host.raise_if_interrupted()
            host.show_progress(node_id, done, total)
            host.show_text(node_id, f"{done} / {total}: {name}")

        try:
            done = caption_folder(
                path,
                options,
                load,
                on_file=on_file,
                within=[root for _, root in folders.dataset_roots()],
                check=host.raise_if_interrupted,
            )
        finally:
            if given is not None:
                host.free_vram()  # the model is in nobody's hands now
        for note in done.notes:
            log.info("captions of %s: %s", folder, note)
        report = _report(done)
        return io.NodeOutput(folder, report, ui={"text": [report]})


def _folder() -> Any:
    return io.Combo.Input(
        "folder",
        options=folders.dataset_folders(),
        tooltip="The folder with images and clips. Press R after making a new one.",
    )


def _models() -> list[Any]:
    return [
        io.Combo.Input(
            "model_folder",
            options=[_NONE, *folders.language_model_names()],
            default=_NONE,
            optional=True,
            tooltip="A model as Hugging Face has it, in a folder below models/LLM: config.json, weights and processor, such as"
            " Qwen2.5-VL-3B-Instruct. None: the model that is connected to clip.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="A vision-language model from Load CLIP, such as qwen3vl_4b, qwen35_4b or gemma4.",
        ),
    ]


def _loader(model_folder: Path | None, clip: Any) -> Any:
    """What gives the model when it is needed; ConfigError if none is named, or two are."""
    if (model_folder is None) == (clip is None):
        both = "both are given: use one of the two" if clip is not None else "none of them is given"
        raise ConfigError(
            f"captions need a model, from clip or from model_folder, and {both}: connect Load CLIP with a vision-language "
            "model, or put a model's folder below models/LLM and choose it."
        )
    if model_folder is None:
        return lambda: host.HostDescriber(clip)

    def load() -> Describer:
        host.free_vram()
        return LocalModel(model_folder, device=host.auto_devices()[0])

    return load


def _report(done: Captioned) -> str:
    """The numbers, then some captions, then every note."""
    texts = [f"{name}: {text}" for name, text in list(done.written.items())[:_SHOWN]]
    more = len(done.written) - len(texts)
    return "\n".join([str(done), *texts, *([f"and {more} more"] if more > 0 else []), *map(str, done.notes)])


NODES = [CaptionDataset]
