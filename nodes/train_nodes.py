"""Training one expert, or a single model, on cached latents and text."""

import logging
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from comfy_api.latest import io

from ..core.adapters.metadata import base_model_name
from ..core.adapters.setup import AdapterOptions
from ..core.data.types import LatentCache, TextCache
from ..core.disk import check_writable
from ..core.errors import ConfigError, WanTrainError
from ..core.flow.sigmas import TimestepOptions
from ..core.train.events import read_history
from ..core.train.job import (
    BOUNDARY_I2V_A14B,
    BOUNDARY_T2V_A14B,
    Job,
    LoopOptions,
    MemoryOptions,
    ModelSpec,
    Stage,
    data_spec,
    official_boundary,
    stage_window,
)
from ..core.train.optimizers import OptimizerOptions
from ..core.train.prepare import check_data
from ..core.train.run_folder import RunFolder, find_run
from ..core.train.schedule import ScheduleOptions
from ..core.wan.checkpoint import hints_expert
from . import host
from .follow import Follower
from .model_nodes import CATEGORY
from .sockets import DitHandle, LoraHandle, LoraModel, LossMap, WanDit, WanLatents, WanLora, WanText

log = logging.getLogger(__name__)

STAGES: dict[str, Stage] = {"high noise": "high", "low noise": "low", "single model": "single"}
TARGETS = {
    "attention and ffn": ("self_attn", "cross_attn", "ffn"),
    "attention": ("self_attn", "cross_attn"),
    "self attention": ("self_attn",),
}


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
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        try:
            if lora_name is not None:
                check_name(lora_name)
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return host.vanished()

    @classmethod
    async def execute(
        cls, dit: DitHandle, latents: LatentCache, text: TextCache, stage: str, **settings: Any
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        job = build_job(dit, latents, text, STAGES[stage], settings)
        check_data(job, dit.info)
        runs = host.runs_path()
        check_writable(runs)
        path = find_run(runs, job.key) or runs / f"{job.name}_{job.stage}_{job.key}"
        folder = RunFolder(path)
        check_writable(folder.path)
        for warning in job_warnings(job):  # now, not after hours of training
            log.warning("%s: %s", job.name, warning)
        if folder.finished_lora(job.loop.steps) is None:
            folder.write_workflow(workflow=_workflow(cls.hidden.extra_pnginfo), prompt=cls.hidden.prompt)
            await Follower(folder, job, node_id).run()
        return _outputs(folder, job, node_id)


def check_name(name: str) -> str:
    """A name that can be part of a file name everywhere."""
    if not re.fullmatch(r"[\w][\w .+()-]{0,99}", name) or name.endswith((".", " ")):
        raise ConfigError(
            f"lora_name is '{name}': use letters, digits, spaces and . _ - + ( ) only, beginning with a letter or digit."
        )
    return name


def build_job(dit: DitHandle, latents: LatentCache, text: TextCache, stage: Stage, settings: dict[str, Any]) -> Job:
    """The job that the node's inputs describe; ConfigError for settings that can't work."""
    s = settings
    config = dit.info.config
    low, high = stage_window(stage, s["boundary"] or official_boundary(config.variant))
    return Job(
        name=check_name(s["lora_name"]),
        stage=stage,
        model=ModelSpec(
            path=str(dit.info.path),
            identity=dit.info.identity,
            precision=dit.precision,  # type: ignore[arg-type]
            label=base_model_name(config, is_expert=stage != "single"),
        ),
        data=data_spec(latents, text),
        adapter=AdapterOptions(rank=s["rank"], alpha=s["alpha"], targets=TARGETS[s["targets"]], dropout=s["dropout"]),
        timesteps=TimestepOptions(
            sampling=s["timestep_sampling"],
            shift=s["timestep_shift"],
            sigmoid_scale=s["sigmoid_scale"],
            sigma_min=low,
            sigma_max=high,
            strata=s["timestep_strata"],
        ),
        optimizer=OptimizerOptions(
            name=s["optimizer"],
            learning_rate=s["learning_rate"],
            weight_decay=s["weight_decay"],
            max_grad_norm=s["max_grad_norm"],
        ),
        schedule=ScheduleOptions(
            kind=s["lr_schedule"], warmup_steps=s["warmup_steps"], floor=s["lr_floor"], power=s["lr_power"]
        ),
        loop=LoopOptions(
            steps=s["steps"],
            batch_size=s["batch_size"],
            gradient_accumulation=s["gradient_accumulation"],
            seed=s["seed"],
            caption_dropout=s["caption_dropout"],
            checkpoint_every=s["checkpoint_every"],
            keep_last=s["keep_last"],
            validate_every=s["validate_every"],
        ),
        memory=MemoryOptions(checkpointing=dit.checkpointing),
        device=s["device"],
        trigger_word=latents.trigger_word,
    )


def job_warnings(job: Job) -> list[str]:
    """Settings without effect, and a file that looks like the other expert's."""
    found = job.warnings()
    hint = hints_expert(Path(job.model.path))
    if hint and job.stage != "single" and hint != job.stage:
        found.append(
            f"{Path(job.model.path).name} looks like the {hint} noise expert, but the stage is {job.stage} noise."
        )
    if hint and job.stage == "single":
        found.append(
            f"{Path(job.model.path).name} looks like the {hint} noise expert of Wan 2.2, but the stage is single model."
        )
    return found


def _workflow(extra_pnginfo: dict[str, Any] | None) -> dict[str, Any] | None:
    return (extra_pnginfo or {}).get("workflow")


def _outputs(folder: RunFolder, job: Job, node_id: str) -> io.NodeOutput:
    lora = folder.finished_lora(job.loop.steps)
    assert lora is not None, "the worker reported success without a result"
    host.remember([lora])
    history = read_history(folder.events_path)
    losses = [history.losses[step] for step in sorted(history.losses)]
    warnings = list(dict.fromkeys([*job_warnings(job), *history.warnings]))
    summary = (
        f"finished: {job.loop.steps} steps, loss {sum(losses[-20:]) / len(losses[-20:]):.4f} (mean of the last 20)"
    )
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
            "targets", options=list(TARGETS), default="attention and ffn", advanced=True,
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
            "lr_floor", default=0.0, min=0.0, max=1.0, step=0.01, round=False, advanced=True,
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
    ]  # fmt: skip


NODES = [TrainLoRAStage]
