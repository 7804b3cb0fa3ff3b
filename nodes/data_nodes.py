"""From a folder of clips and captions to latents and text embeddings on disk."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..core.data.encode import cache_latents, cache_text
from ..core.data.links import files_below, is_file, is_folder, leads_within
from ..core.data.report import describe_dataset, list_notes
from ..core.data.sample_prompts import read_prompts
from ..core.data.scan import scan_folder
from ..core.data.store import Store
from ..core.data.types import Dataset, Note
from ..core.disk import check_writable
from ..core.errors import ConfigError, WanTrainError
from ..core.settings.dataset import Conditioning, DatasetOptions
from ..core.settings.previews import SamplePromptOptions
from ..core.sweep import sweep_temporaries
from ..core.words import counted
from . import host
from .host import folders
from .inputs import check_known, checked
from .model_nodes import CATEGORY
from .sockets import WanDataset, WanLatents, WanText
from .widgets import inputs_of, meanings

log = logging.getLogger(__name__)


class DatasetFromFolder(io.ComfyNode):
    """Reads a folder of images and clips with captions. Output: a description, no pixels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DatasetFromFolder",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="Dataset from Folder (Wan)",
            category=CATEGORY,
            description="Images (png, jpg, webp, avif) and clips (mp4, mov, mkv, webm, gif), each with a text file of the"
            " same name that holds its caption. Everything that is dropped, cut or changed is listed on the node.",
            search_aliases=["wan dataset", "training data", "video dataset"],
            inputs=inputs_of("DatasetFromFolder", [_folder()]),
            outputs=[WanDataset.Output("dataset", display_name="dataset", tooltip="For Cache Latents and Cache T5.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """None: comes over a wire, and is checked when it is there.

        Of the folder alone: the host repeats a refusal for every input that is named here. Sizes are refused by the node.
        """
        try:
            check_known(cls, {"folder": folder})
            if folder is not None:
                folders.resolve_dataset_folder(folder)
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, mask_folder: str | None = "", metadata_file: str | None = "", **_: Any
    ) -> Any:
        if folder is None or mask_folder is None or metadata_file is None:
            return float("nan")  # over a wire: what lies there may have changed
        path = folders.resolve_dataset_folder(folder)
        places, roots = [path], [path, *(root for _, root in folders.dataset_roots())]
        masks, metadata = path / mask_folder, path / metadata_file
        if mask_folder and masks != path and is_folder(masks) and leads_within(masks, roots):
            places.append(masks)
        further = [metadata] if metadata_file and is_file(metadata) and leads_within(metadata, roots) else []
        stats = [(str(p), p.stat()) for p in (*further, *(p for place in places for p in files_below(place)))]
        return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    @classmethod
    @checked
    def execute(cls, folder: str, **settings: Any) -> io.NodeOutput:
        path = folders.resolve_dataset_folder(folder)
        node_id = cls.hidden.unique_id

        def on_file(done: int, total: int) -> None:
            host.raise_if_interrupted()
            host.show_progress(node_id, done, total)

        options = DatasetOptions(**meanings("DatasetFromFolder", settings))
        places = [root for _, root in folders.dataset_roots()]
        index = host.cache_path() / "files.json"
        dataset = scan_folder(
            path, options, index_path=index, progress=on_file, within=places, check=host.raise_if_interrupted
        )
        for sentence in options.warnings():
            log.warning("dataset %s: %s", folder, sentence)
        for note in dataset.notes:
            log.info("dataset %s: %s", folder, note)
        return io.NodeOutput(dataset, ui={"text": [describe_dataset(dataset)]})


def _folder() -> Any:
    return io.Combo.Input(
        "folder",
        options=folders.dataset_folders(),
        tooltip="The folder with images, clips and captions: a folder below ComfyUI's input or datasets folder."
        " Press R after making a new one.",
    )


def _item_callback(node_id: str) -> Callable[[int, int, str], None]:
    def on_item(done: int, total: int, name: str) -> None:
        host.raise_if_interrupted()
        host.show_progress(node_id, done, total)
        host.show_text(node_id, f"{done} / {total}: {name}")

    return on_item


def _cached(node_id: str, summary: str, notes: list[Note]) -> dict[str, list[str]]:
    for note in notes:
        log.info("%s", note)
    host.show_text(node_id, summary)
    return {"text": [summary + ("\n" + list_notes(notes) if notes else "")]}


def refuse_in_vain(prompt: Any, node_id: str) -> None:
    """ConfigError where the training that uses what this node would encode can't be run, as far as it is known by now."""
    from .check_graph import why_not  # which imports this module

    host.show_text(node_id, "looking whether the training can be run")
    found = why_not(prompt, node_id)
    if found:
        host.send_event("wan_train.refused", {"node_id": found.node, "text": found.sentence})  # stands there, too
        raise ConfigError(
            f"nothing is encoded, since the training that follows can't be run. {found.title} (node {found.node}): "
            f"{found.sentence}"
        )


class CacheLatents(io.ComfyNode):
    """Encodes every sample with the VAE, once: the cache is keyed by content."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CacheLatents",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="Cache Latents (Wan)",
            category=CATEGORY,
            description="Encodes the dataset with the VAE and keeps the result on disk. Only what is new or changed is"
            " encoded: the key is the content of the file, the VAE, the size and the frames.",
            inputs=inputs_of("CacheLatents", _latents_inputs(), last=[_clip_vision()]),
            outputs=[WanLatents.Output("latents", display_name="latents", tooltip="Cached latents, for training.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return host.vanished()

    @classmethod
    @checked
    def execute(
        cls, dataset: Dataset, vae: Any, condition_on: Conditioning = "none", clip_vision: Any = None
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        prompt = cls.hidden.prompt
        encoder = host.HostVideoEncoder(vae, before=lambda: refuse_in_vain(prompt, node_id))
        check_writable(host.cache_path())
        sweep_temporaries(host.cache_path(), recursive=True)
        cache, notes = cache_latents(
            dataset,
            encoder,
            Store(host.cache_path()),
            conditioning=condition_on,
            vision=None if clip_vision is None else host.HostVisionEncoder(clip_vision),
            on_item=_item_callback(node_id),
            check=host.raise_if_interrupted,
        )
        paths = [Path(p) for e in cache.entries for p in (e.path, e.known_path, e.vision_path, e.mask_path) if p]
        host.remember(paths)
        size = sum(path.stat().st_size for path in paths) / 1e6
        given = "" if condition_on == "none" else f", with the {condition_on} given"
        summary = (
            f"{counted(len(cache.entries), 'sample')} in the cache, {size:.1f} MB, {cache.latent_format} latents{given}"
        )
        return io.NodeOutput(cache, ui=_cached(node_id, summary, notes))


def _latents_inputs() -> list[Any]:
    return [
        WanDataset.Input("dataset", tooltip="From Dataset from Folder, or Join Datasets."),
        io.Vae.Input(
            "vae",
            tooltip="The Wan VAE: wan_2.1_vae for Wan 2.1 and for Wan 2.2 A14B, wan2.2_vae for Wan 2.2 TI2V 5B.",
        ),
    ]


def _clip_vision() -> Any:
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="For the image-to-video models of Wan 2.1 alone: Load CLIP Vision with clip_vision_h.",
    )


class CacheT5(io.ComfyNode):
    """Encodes every caption, once: the cache is keyed by the caption and the encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CacheT5",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="Cache T5 (Wan captions)",
            category=CATEGORY,
            description="Encodes the captions with the umT5 text encoder and keeps the result on disk. Captions are taken"
            " as they are, without prompt weights, and are cut at 512 tokens.",
            inputs=inputs_of(
                "CacheT5",
                [
                    WanDataset.Input("dataset", tooltip="From Dataset from Folder, or Join Datasets."),
                    io.Clip.Input("clip", tooltip="The umT5 text encoder: Load CLIP with the type wan."),
                ],
            ),
            outputs=[WanText.Output("text", display_name="text", tooltip="Cached text embeddings, for training.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, sample_prompts: str | None = None) -> bool | str:
        """Before anything is encoded; the trigger word is not known yet."""
        try:
            check_known(cls, {"sample_prompts": sample_prompts})
            read_prompts(SamplePromptOptions(prompts=sample_prompts or ""), "trigger")
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return host.vanished()

    @classmethod
    @checked
    def execute(cls, dataset: Dataset, clip: Any, sample_prompts: str = "", sample_negative: str = "") -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        options = SamplePromptOptions(prompts=sample_prompts, negative=sample_negative)
        prompts = read_prompts(options, dataset.trigger_words)
        prompt = cls.hidden.prompt

        def before(captions: Sequence[str]) -> None:
            # Where only sample prompts are new, the training may be finished, and take no memory and no disk.
            if not set(dataset.captions).isdisjoint(captions):
                refuse_in_vain(prompt, node_id)

        encoder = host.HostTextEncoder(clip, before=before)
        check_writable(host.cache_path())
        sweep_temporaries(host.cache_path(), recursive=True)
        cache, notes = cache_text(
            dataset.captions, encoder, Store(host.cache_path()), prompts=prompts, on_item=_item_callback(node_id)
        )
        host.remember(Path(entry.path) for entry in cache.entries)
        longest = max(entry.num_tokens for entry in cache.entries)
        summary = f"{counted(len(cache.entries), 'caption')} in the cache, the longest has {longest} of 512 tokens"
        if prompts:
            summary += f"\n{counted(len(prompts), 'sample prompt')} for previews (preview_every of the training node)"
        return io.NodeOutput(cache, ui=_cached(node_id, summary, notes))


NODES = [DatasetFromFolder, CacheLatents, CacheT5]
