"""Training one expert, or a single model, on cached latents and text."""

import logging
from typing import Any

import safetensors.torch
from comfy_api.latest import io

from ..core.adapters.ship import check_name
from ..core.data.pairs import data_spec
from ..core.data.types import LatentCache, TextCache
from ..core.disk import check_writable
from ..core.errors import ConfigError, RunError, WanTrainError
from ..core.facts import BOUNDARY_I2V_A14B, BOUNDARY_T2V_A14B
from ..core.packages import check_packages
from ..core.paths import shown
from ..core.settings.job import Job, Stage
from ..core.settings.previews import PreviewOptions
from ..core.settings.stage import TARGET_SETS, settings_from_names
from ..core.train.build import build_job, job_warnings
from ..core.train.history import read_long_history
from ..core.train.optimizers import OPTIMIZERS
from ..core.train.run_folder import RunFolder
from ..core.train.space import check_space_before
from ..core.train.start import check_start, needed_packages
from . import host
from .follow import Follower, run_line
from .inputs import checked
from .model_nodes import CATEGORY
from .previews import PreviewDecoder
from .sockets import DitHandle, LoraHandle, LoraModel, LossMap, WanDit, WanLatents, WanLora, WanText

log = logging.getLogger(__name__)

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
            " Stop keeps a checkpoint; queued again, the run goes on from there. A finished run returns at once.",
            search_aliases=["train wan lora", "lora trainer", "fine-tune"],
            inputs=[
                WanDit.Input("dit", tooltip="From Load Wan DiT: the high noise file for the high noise stage."),
                WanLatents.Input("latents", tooltip="From Cache Latents."),
                WanText.Input("text", tooltip="From Cache T5, of the same dataset."),
                *_main_inputs(),
                *_timestep_inputs(),
                *_optimizer_inputs(),
                *_rhythm_inputs(),
                *_preview_inputs(),
            ],
            outputs=[
                WanLora.Output("lora", display_name="lora", tooltip="The trained LoRA, for Merge Stages."),
                LoraModel.Output("lora_model", display_name="lora_model", tooltip="For ComfyUI's Load LoRA Model."),
                LossMap.Output("loss_map", display_name="loss_map", tooltip="For ComfyUI's Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None, optimizer: str | None = None) -> bool | str:
        """Before anything of the graph is cached."""
        try:
            check_packages(needed_packages(optimizer or "", ""))
            if optimizer is not None and optimizer not in OPTIMIZERS:  # the host leaves it to whom it hands it
                raise ConfigError(f"optimizer is '{shown(optimizer)}': choose one of {', '.join(OPTIMIZERS)}.")
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
        cls, dit: DitHandle, latents: LatentCache, text: TextCache, vae: Any = None, **settings: Any
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        job = stage_job(dit, latents, text, settings)
        check_start(job, dit.info)
        decoder = _decoder(job.previews, vae, latents)
        runs = host.runs_path()
        check_writable(runs)
        for warning in job_warnings(job):  # now, not after hours of training
            log.warning("%s: %s", job.name, warning)
        follower = Follower(runs, job, node_id, decoder)
        check_space_before(job, dit.info.config, follower.folder)
        folder = await follower.run(workflow=_workflow(cls.hidden.extra_pnginfo), prompt=cls.hidden.prompt)
        return _outputs(folder, job, node_id, [] if decoder is None else decoder.notes)


def stage_job(dit: DitHandle, latents: LatentCache, text: TextCache, settings: dict[str, Any]) -> Job:
    """The job that the node's inputs describe; ConfigError for settings that can't work."""
    values = {name: value for name, value in settings.items() if name not in ("stage", "lora_name")}
    values |= dit.settings
    return build_job(
        dit.info,
        data_spec(latents, text),
        settings_from_names(values),
        name=settings["lora_name"],
        stage=STAGES[settings["stage"]],
        trigger_word=latents.trigger_word,
        recovery_adapter=dit.recovery_adapter,
    )


def _decoder(previews: PreviewOptions, vae: Any, latents: LatentCache) -> PreviewDecoder | None:
    if not previews.every:
        return None
    if vae is None:
        raise ConfigError(
            f"preview_every is {previews.every}, but previews need a VAE: connect the one of Cache Latents to vae, or set "
            "preview_every to 0."
        )
    return PreviewDecoder(vae, latents)


def _workflow(extra_pnginfo: dict[str, Any] | None) -> dict[str, Any] | None:
    return (extra_pnginfo or {}).get("workflow")


def _outputs(folder: RunFolder, job: Job, node_id: str, notes: list[str]) -> io.NodeOutput:
    lora = folder.finished_lora(job.loop.steps)
    if lora is None:
        raise RunError(f"the run finished, but its LoRA is no longer in {folder.path}: queue again to write it anew.")
    host.remember([lora])
    history = read_long_history(folder.events_path)
    losses = [loss for _, loss in history.losses.points()]
    warnings = list(dict.fromkeys([*job_warnings(job), *history.warnings, *notes]))
    summary = f"finished: {job.loop.steps} steps"
    last = losses[-20:]  # none, where the diary was lost
    if last:
        summary += f", loss {sum(last) / len(last):.4f} (mean of the last 20)"
    summary += f"\n{run_line(folder, job)}"
    host.show_text(node_id, summary)
    return io.NodeOutput(
        LoraHandle(lora, job.stage, job.name, job.loop.steps),
        safetensors.torch.load_file(lora),
        {"loss": losses},
        ui={"text": ["\n".join([summary, *(f"- {w}" for w in warnings)])], "wan_run": [folder.path.name]},
    )


def _main_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "stage", options=list(STAGES), default="high noise",
            tooltip="Which part of the noise levels is trained. Wan 2.2 A14B has two experts: use one node for each, with"
            " its own file. Wan 2.1 is a single model.",
        ),
        io.String.Input("lora_name", default="my_lora", tooltip="Name of the run; also the start of the file's name."),
        io.Int.Input(
            "steps", default=2000, min=1, max=1000000,
            tooltip="Number of optimizer updates. With the constant schedule a finished run can be made longer later.",
        ),
        io.Float.Input(
            "learning_rate", default=1e-4, min=1e-8, max=1.0, step=1e-6, round=False,
            tooltip="Size of an update. 1e-4 to 3e-4 are usual for rank 16.",
        ),
        io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Rank of the LoRA: its capacity, and its file size."),
        io.Float.Input(
            "alpha", default=16.0, min=0.001, max=4096.0, step=1.0,
            tooltip="The LoRA is scaled by alpha / rank. Usually equal to rank.",
        ),
        io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="Samples of one shape that are trained together."),
        io.Int.Input(
            "seed", default=42, min=0, max=2**53, control_after_generate=False,
            tooltip="Decides noise, noise levels, order and the LoRA's start. The same seed gives the same LoRA.",
        ),
    ]  # fmt: skip


def _timestep_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "timestep_sampling", options=["uniform", "sigmoid", "shift"], default="uniform", advanced=True,
            tooltip="Distribution of the noise levels, cut to the stage's window. uniform: all alike. sigmoid: mostly the"
            " middle (logit-normal). shift: logit-normal moved towards noise by timestep_shift.",
        ),
        io.Float.Input(
            "timestep_shift", default=3.0, min=0.01, max=100.0, step=0.1, advanced=True,
            tooltip="For timestep_sampling shift: above 1 trains more on noisy levels.",
        ),
        io.Float.Input(
            "sigmoid_scale", default=1.0, min=0.01, max=100.0, step=0.1, advanced=True,
            tooltip="For sigmoid and shift: width of the distribution; below 1 is narrower.",
        ),
        io.Int.Input(
            "timestep_strata", default=1, min=1, max=64, advanced=True,
            tooltip="This many draws in a row cover the window evenly, which lowers the variance. 1: independent draws.",
        ),
        io.Float.Input(
            "boundary", default=0.0, min=0.0, max=0.999, step=0.005, round=0.001, advanced=True,
            tooltip="Noise level (0 to 1) where the high noise expert hands over to the low noise expert. 0: the official"
            f" one, {BOUNDARY_T2V_A14B:g} for T2V-A14B and {BOUNDARY_I2V_A14B:g} for I2V-A14B. Not used by a single model.",
        ),
    ]  # fmt: skip


def _optimizer_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "targets", options=list(TARGET_SETS), default="attention and ffn", advanced=True,
            tooltip="Which linear layers of the blocks get a LoRA.",
        ),
        io.Float.Input(
            "dropout", default=0.0, min=0.0, max=0.95, step=0.01, advanced=True,
            tooltip="Share of the LoRA's inputs set to zero while training.",
        ),
        io.Int.Input(
            "gradient_accumulation", default=1, min=1, max=1024, advanced=True,
            tooltip="Batches added up for one update: like a larger batch_size, without the memory.",
        ),
        io.Combo.Input(
            "optimizer", options=["adamw", "adamw8bit"], default="adamw", advanced=True,
            tooltip="adamw8bit saves memory and needs the package bitsandbytes.",
        ),
        io.Float.Input(
            "weight_decay", default=0.01, min=0.0, max=10.0, step=0.001, round=False, advanced=True,
            tooltip="Pull of the weights towards zero (decoupled).",
        ),
        io.Float.Input(
            "max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1, advanced=True,
            tooltip="Gradients longer than this are shortened to it. 0: off.",
        ),
        io.Combo.Input(
            "lr_schedule", options=["constant", "cosine", "linear", "polynomial"], default="constant", advanced=True,
            tooltip="How the learning rate falls over the run.",
        ),
        io.Int.Input(
            "warmup_steps", default=0, min=0, max=100000, advanced=True,
            tooltip="Steps over which the learning rate rises from zero at the start.",
        ),
        io.Float.Input(
            "lr_floor", default=0.0, min=0.0, max=1.0, step=1e-5, round=False, advanced=True,
            tooltip="Lowest learning rate, as a fraction of learning_rate; for all schedules that fall.",
        ),
        io.Float.Input(
            "lr_power", default=1.0, min=0.01, max=100.0, step=0.1, advanced=True,
            tooltip="Exponent of the polynomial schedule: 1 is linear, larger falls faster at first.",
        ),
        io.Float.Input(
            "caption_dropout", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
            tooltip="Probability that a sample is trained with an empty caption.",
        ),
    ]  # fmt: skip


def _rhythm_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "checkpoint_every", default=250, min=1, max=1000000, advanced=True,
            tooltip="Steps between two checkpoints, from which a run can go on.",
        ),
        io.Int.Input("keep_last", default=3, min=1, max=1000, advanced=True, tooltip="Number of checkpoints to keep."),
        io.Int.Input(
            "validate_every", default=100, min=1, max=1000000, advanced=True,
            tooltip="Steps between two measurements of the held-out samples (see held_out of the dataset).",
        ),
        io.Combo.Input(
            "device", options=host.device_names(), default="auto", advanced=True,
            tooltip="Where to train. auto takes a free GPU: with two GPUs both experts train at the same time.",
        ),
        io.Int.Input(  # new inputs come last and are optional: saved workflows and prompts stay valid
            "epochs", default=0, min=0, max=100000, optional=True, advanced=True,
            tooltip="Length of the run in epochs, in place of steps. 0: steps decides.",
        ),
        io.Int.Input(
            "token_budget", default=0, min=0, max=10_000_000, optional=True, advanced=True,
            tooltip="Most tokens in a batch: with a large batch_size, images are then trained many at a time and long clips"
            " one by one. A 512x512 image has 1024 tokens, 832x480 with 33 frames 14040. 0: no limit.",
        ),
    ]  # fmt: skip


def _preview_inputs() -> list[Any]:
    """Optional, and behind all the others: saved workflows and prompts stay valid."""
    return [
        io.Vae.Input("vae", optional=True, tooltip="For preview_every: the VAE that Cache Latents has."),
        io.Int.Input(
            "preview_every", default=0, min=0, max=1000000, optional=True, advanced=True,
            tooltip="Steps between two previews: a short video on this node, made with the LoRA as it is then, for the caption"
            " and the size of the first held-out sample, else of the first one. The high noise stage shows where its expert"
            " hands over: blurry, but motion and composition are seen. The low noise stage starts from noise on the sample"
            " itself, and shows the look. 0: none.",
        ),
        io.Int.Input(
            "preview_steps", default=16, min=1, max=1000, optional=True, advanced=True,
            tooltip="Sampling steps of a preview, of which a stage makes those inside its noise levels.",
        ),
        io.Float.Input(
            "preview_cfg", default=5.0, min=0.0, max=30.0, step=0.1, optional=True, advanced=True,
            tooltip="Guidance scale of a preview. 1: off, twice as fast.",
        ),
    ]  # fmt: skip


NODES = [TrainLoRAStage]
