"""Training one expert, or a single model, on cached latents and text."""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from comfy_api.latest import io

from ..core.adapters.ship import check_name
from ..core.data.pairs import data_spec
from ..core.data.types import LatentCache, TextCache
from ..core.disk import check_writable
from ..core.errors import ConfigError, RunError, WanTrainError
from ..core.launch.planned import describe_devices, gpus_of, places_of
from ..core.packages import check_packages
from ..core.settings.job import Job, Stage
from ..core.settings.previews import PreviewOptions
from ..core.settings.stage import StageSettings, settings_from_names
from ..core.train.build import PreviewModels, build_job, job_warnings, with_copies
from ..core.train.history import read_long_history
from ..core.train.partway import keep_newest
from ..core.train.run_folder import RunFolder
from ..core.train.space import check_space_before
from ..core.train.spread import RunPlace, build_over
from ..core.train.start import check_start, needed_packages
from . import host
from .follow import Follower, Graph
from .host import folders
from .inputs import check_known, checked
from .model_nodes import CATEGORY
from .previews import PreviewDecoder
from .sockets import DitHandle, LoraHandle, LoraModel, LossMap, WanDit, WanLatents, WanLora, WanText
from .told import length_line, told
from .widgets import inputs_of

log = logging.getLogger(__name__)

# Each a path, or the name of a file in ComfyUI's folders of LoRAs.
_LORA_FILES, _PREVIEW_LORAS = ("start_from", "merge_into_base"), ("preview_lora", "preview_other_lora")
_NO_WIRE = object()  # in the place of an input that is not connected
STAGES: dict[str, Stage] = {"high noise": "high", "low noise": "low", "single model": "single"}


class TrainLoRAStage(io.ComfyNode):
    """Trains a LoRA in a process of its own. Queued again it goes on, or returns at once when it is finished."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainLoRAStage",
            display_name="Train LoRA Stage (Wan)",
            category=CATEGORY,
            description="Trains a LoRA for one expert of Wan 2.2 (high or low noise), or for a single model such as Wan 2.1."
            " Stop keeps a checkpoint; Run goes on from there. A finished run returns at once.",
            search_aliases=["train wan lora", "lora trainer", "fine-tune"],
            inputs=_inputs(),
            outputs=[
                WanLora.Output("lora", display_name="lora", tooltip="The trained LoRA, for Merge Stages."),
                LoraModel.Output("lora_model", display_name="lora_model", tooltip="For ComfyUI's Load LoRA Model."),
                LossMap.Output("loss_map", display_name="loss_map", tooltip="For ComfyUI's Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        lora_name: str | None = None,
        optimizer: str | None = None,
        preview_every: int | None = None,
        vae: Any = _NO_WIRE,
    ) -> bool | str:
        """Before anything of the graph is cached. What comes over a wire is None."""
        try:
            check_known(cls, {"optimizer": optimizer, "preview_every": preview_every})  # the host leaves them to us
            if preview_every is not None:
                check_vae(PreviewOptions(every=preview_every), has_vae=vae is not _NO_WIRE)
            check_packages(needed_packages(optimizer, ""))
            if lora_name is not None:
                check_name(lora_name, "lora_name")
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return host.vanished()

    @classmethod
    @checked
    async def execute(
        cls,
        dit: DitHandle,
        latents: LatentCache,
        text: TextCache,
        vae: Any = None,
        other_dit: DitHandle | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        wanted = stage_settings(dit, settings)
        job = stage_job(dit, latents, text, settings, other_dit)
        trained = stage_models(STAGES[settings["stage"]], dit, other_dit, wanted).model
        check_start(job, trained.info)
        decoder = _decoder(job.previews, vae, latents)
        runs = host.runs_path()
        check_writable(runs)
        warnings = [*job_warnings(job, wanted), *other_warnings(job, dit, other_dit)]
        log.info("%s: %s", job.name, length_line(job))
        gpus = gpus_of(job.device, host.auto_devices())
        spread = describe_devices([job], host.auto_devices(), {job.stage: gpus}) if gpus > 1 else []
        for sentence in spread:
            log.info("%s: %s", job.name, sentence)
        for warning in warnings:  # now, not after hours of training
            log.warning("%s: %s", job.name, warning)
        graph = Graph(workflow=_workflow(cls.hidden.extra_pnginfo), prompt=cls.hidden.prompt)
        notes = [*spread, *warnings]
        follower = Follower(runs, job, node_id, decoder, graph=graph, notes=notes, track=wanted.track)
        check_space_before(job, trained.info.config, follower.folder)
        folder = await follower.run()
        if follower.is_partial:
            step, lora = await asyncio.to_thread(keep_newest, folder, job)
            host.note_unfinished()
            return _outputs(folder, job, node_id, lora, step)
        lora = folder.finished_lora(job.loop.steps)
        if lora is None:
            raise RunError(f"the run finished, but its LoRA is no longer in {folder.path}: press Run to write it anew.")
        return _outputs(folder, job, node_id, lora, job.loop.steps)


def stage_job(
    dit: DitHandle,
    latents: LatentCache,
    text: TextCache,
    settings: dict[str, Any],
    other_dit: DitHandle | None = None,
) -> Job:
    """The job that the node's inputs describe; ConfigError for settings that can't work."""
    wanted = stage_settings(dit, settings)
    models = stage_models(STAGES[settings["stage"]], dit, other_dit, wanted)
    build = partial(
        build_job,
        models.model.info,
        data_spec(latents, text),
        name=settings["lora_name"],
        stage=models.stage,
        trigger_word=latents.trigger_word,
        recovery_adapter=dit.recovery_adapter,
        previews_with=PreviewModels(other=None if models.other is None else models.other.info),
    )
    names = places_of(wanted.device, host.auto_devices())[0].split(",")
    place = RunPlace(len(names), device=names[0], scratch=host.runs_path().parent / "cache")
    return with_copies(build_over(build, wanted, models.model.info, place, log.info), folders.loras_path())


class StageModels(NamedTuple):
    """What a node trains: of the stage both the high noise expert, and the low noise one as the other."""

    stage: Stage
    model: DitHandle
    other: DitHandle | None


def stage_models(stage: Stage, dit: DitHandle, other_dit: DitHandle | None, wanted: StageSettings) -> StageModels:
    """The node's models by its settings; with shared_lora `stage` says which of them dit is. ConfigError if one is missing."""
    if not wanted.shared_lora or stage == "single":
        return StageModels(stage, dit, other_dit)
    if other_dit is None:
        raise ConfigError(
            "shared_lora trains one LoRA through both experts, but other_dit has no wire: connect Load Wan DiT of the other"
            " expert to it."
        )
    high, low = (dit, other_dit) if stage == "high" else (other_dit, dit)
    return StageModels("both", high, low)


def other_warnings(job: Job, dit: DitHandle, other_dit: DitHandle | None) -> list[str]:
    """A sentence where the other expert's node says otherwise how it is to be held, which has no effect."""
    if job.stage != "both" or other_dit is None or other_dit.settings == dit.settings:
        return []
    return [
        "precision and memory options of other_dit have no effect: with shared_lora both experts are held as dit says."
    ]


def stage_settings(dit: DitHandle, settings: dict[str, Any]) -> StageSettings:
    """What is chosen on this node and on Load Wan DiT."""
    values = {name: value for name, value in settings.items() if name not in ("stage", "lora_name")}
    for name in (*_LORA_FILES, *(_PREVIEW_LORAS if values.get("preview_every") else ())):
        given = str(values.get(name, "")).strip().strip('"')
        values[name] = str(folders.lora_path(given, name)) if given and not Path(given).is_absolute() else given
    for name in ("crepa_encoder", "crepa_vae"):
        given = str(values.get(name, "")).strip().strip('"')
        values[name] = str(Path(given).absolute()) if given else ""  # the training process works in another folder
    return settings_from_names(values | dit.settings)


def check_vae(previews: PreviewOptions, *, has_vae: bool) -> None:
    """ConfigError for previews that nothing can show."""
    if previews.every and not has_vae:
        raise ConfigError(
            f"preview_every is {previews.every}, but previews need a VAE: connect the one of Cache Latents to vae, or set "
            "preview_every to 0."
        )


def _decoder(previews: PreviewOptions, vae: Any, latents: LatentCache) -> PreviewDecoder | None:
    check_vae(previews, has_vae=vae is not None)
    return PreviewDecoder(vae, latents) if previews.every else None


def _workflow(extra_pnginfo: dict[str, Any] | None) -> dict[str, Any] | None:
    return (extra_pnginfo or {}).get("workflow")


def _outputs(folder: RunFolder, job: Job, node_id: str, lora: Path, step: int) -> io.NodeOutput:
    host.remember([lora])
    history = read_long_history(folder.events_path)
    text = told(folder, job, history)
    if step < job.loop.steps:
        text = f"the LoRA of step {step} is used\n{text}"
    host.show_text(node_id, text)
    return io.NodeOutput(
        LoraHandle(lora, job.stage, job.name, step),
        safetensors.torch.load_file(lora),
        {"loss": [loss for _, loss in history.losses.points()]},
        ui={"text": [text], "wan_run": [folder.path.name]},
    )


def _inputs() -> list[Any]:
    first = [
        WanDit.Input("dit", tooltip="From Load Wan DiT: the high noise file for the high noise stage."),
        WanLatents.Input("latents", tooltip="From Cache Latents."),
        WanText.Input("text", tooltip="From Cache T5, of the same dataset."),
        io.Combo.Input(
            "stage", options=list(STAGES), default="high noise",
            tooltip="Which part of the noise levels is trained. Wan 2.2 A14B has two experts: use one node for each, with"
            " its own file. Wan 2.1 is a single model.",
        ),
        io.String.Input("lora_name", default="my_lora", tooltip="Name of the run; also the start of the file's name."),
    ]  # fmt: skip
    vae = io.Vae.Input("vae", optional=True, tooltip="For preview_every: the VAE that Cache Latents has.")
    other = WanDit.Input(
        "other_dit",
        optional=True,
        tooltip="For preview_every with Wan 2.2 A14B: Load Wan DiT of the other expert. Previews then go through both, the"
        " other one with its newest LoRA of this name. Its file is read once for a preview where the GPU has room for it, else"
        " block by block for each step. For shared_lora: the other expert that is trained through.",
    )
    return inputs_of(
        "TrainLoRAStage", first, before={"preview_every": vae}, last=[other], choices={"device": host.device_names()}
    )


NODES = [TrainLoRAStage]
