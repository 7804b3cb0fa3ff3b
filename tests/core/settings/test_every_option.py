"""Every option of a training reaches it: changed alone, it changes weights, losses, files or the plan, or is refused.

A new option fails here until it says how it is seen, or why it cannot be seen on the CPU.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.start_from import adapter_identity
from wan_train.core.errors import WanTrainError
from wan_train.core.recipe.recipe import Recipe
from wan_train.core.settings.files import DatasetSource
from wan_train.core.settings.groups import Groups
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.option import all_options
from wan_train.core.settings.stage import StageSettings
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.plan.test_planner import SHORT, planner
from wan_train.tests.core.train.helpers import with_class

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
BASE = {"loop.steps": 4, "loop.checkpoint_every": 2, "optimizer.max_grad_norm": 0.5}
_SKIPPED = {"previews.every": 4, "previews.skip_layers": "1"}
# Option -> its other value, and what else has to be chosen for it to have an effect.
CHANGES = {
    "adapter.rank": (2, {}), "adapter.alpha": (8.0, {}), "adapter.targets": (("ffn",), {}), "adapter.dropout": (0.5, {}),
    "adapter.kind": ("loha", {}), "adapter.rslora": (True, {}), "adapter.include": ("ffn", {}),
    "adapter.exclude": ("ffn", {}), "adapter.ranks": ("ffn = 2", {}),
    "adapter.lokr_factor": (2, {"adapter.kind": "lokr"}),
    "adapter.lokr_full": (True, {"adapter.kind": "lokr", "adapter.rank": 1}),
    "adapter.rank_dropout": (0.5, {}), "adapter.module_dropout": (0.9, {}),
    "adapter.oft_constraint": (1e-4, {"adapter.kind": "oft"}), "adapter.tlora_min_rank": (4, {"adapter.kind": "tlora"}),
    "adapter.tlora_power": (9.0, {"adapter.kind": "tlora"}), "adapter.tlora_orthogonal": (False, {"adapter.kind": "tlora"}),
    "timesteps.sampling": ("sigmoid", {}), "timesteps.shift": (9.0, {"timesteps.sampling": "shift"}),
    "timesteps.sigmoid_scale": (0.3, {"timesteps.sampling": "sigmoid"}), "timesteps.strata": (4, {}),
    "timesteps.bias": ("favor_low_noise", {}), "timesteps.window": ("squeezed", {"timesteps.sampling": "sigmoid"}),
    "timesteps.curve": ("0:1, 1:0.01", {"timesteps.sampling": "curve"}),
    "timesteps.logsnr_mean": (3.0, {"timesteps.sampling": "logsnr"}),
    "timesteps.logsnr_std": (3.0, {"timesteps.sampling": "logsnr"}),
    "timesteps.beta_a": (5.0, {"timesteps.sampling": "beta"}), "timesteps.beta_b": (5.0, {"timesteps.sampling": "beta"}),
    "timesteps.mode_scale": (0.1, {"timesteps.sampling": "mode"}),
    "optimizer.name": ("lion", {}), "optimizer.learning_rate": (1e-3, {}), "optimizer.weight_decay": (0.9, {}),
    "optimizer.beta1": (0.1, {}), "optimizer.beta2": (0.1, {}), "optimizer.eps": (0.1, {}),
    "optimizer.max_grad_norm": (1e-6, {"optimizer.name": "custom", "optimizer.path": "torch.optim.SGD"}),
    "optimizer.clip_by": (
        "value", {"optimizer.max_grad_norm": 1e-6, "optimizer.name": "custom", "optimizer.path": "torch.optim.SGD"}
    ),
    "optimizer.lora_plus": (16.0, {}),
    "optimizer.args": ("momentum=0.9", {"optimizer.name": "custom", "optimizer.path": "torch.optim.SGD"}),
    "optimizer.path": ("torch.optim.RMSprop", {"optimizer.name": "custom", "optimizer.path": "torch.optim.SGD"}),
    "schedule.kind": ("cosine", {}), "schedule.warmup_steps": (3, {}), "schedule.floor": (0.9, {"schedule.kind": "cosine"}),
    "schedule.power": (4.0, {"schedule.kind": "polynomial"}), "schedule.cycles": (2, {"schedule.kind": "cosine_restarts"}),
    "schedule.decay_share": (0.9, {"schedule.kind": "warmup_stable_decay"}),
    "loop.steps": (3, {}), "loop.batch_size": (2, {}), "loop.gradient_accumulation": (2, {}), "loop.seed": (7, {}),
    "loop.caption_dropout": (1.0, {}), "loop.checkpoint_every": (1, {}), "loop.keep_last": (1, {}),
    "loop.validate_every": (1, {}), "loop.token_budget": (4, {"loop.batch_size": 2}),
    "loss.kind": ("mae", {}), "loss.weighting": ("bell", {}), "loss.huber_delta": (0.01, {"loss.kind": "huber"}),
    "loss.huber_c": (0.01, {"loss.kind": "pseudo_huber"}), "loss.huber_schedule": ("snr", {"loss.kind": "pseudo_huber"}),
    "loss.motion_strength": (9.0, {"loss.weighting": "motion"}), "loss.differential_guidance": (3.0, {}),
    "loss.contrastive_guidance": (3.0, {}), "loss.contrastive_schedule": ("sigma", {"loss.contrastive_guidance": 3.0}),
    "loss.contrastive_cfg_zero": (True, {"loss.contrastive_guidance": 3.0}),
    "tread.routes": ("1 to 1: 0.5", {}), "rollout.steps": (3, {}), "rollout.probability": (0.1, {"rollout.steps": 3}),
    "rollout.ramp_steps": (1000, {"rollout.steps": 3}), "rollout.strategy": ("biased_late", {"rollout.steps": 3}),
    "rollout.direction": (10.0, {"rollout.steps": 3}),
    "ema.use": (True, {}), "ema.decay": (0.5, {"ema.use": True, "ema.warm_up": False}),
    "ema.every": (2, {"ema.use": True}), "ema.warm_up": (False, {"ema.use": True}),
    "ema.shown": ("none", {"ema.use": True, "loop.validate_every": 1}), "ema.lora": ("trained", {"ema.use": True}),
    "regularizers.output_preservation": (1.0, {}), "regularizers.blank_preservation": (1.0, {}),
    "regularizers.max_weight_norm": (1e-3, {}),
    "regularizers.preservation_target": (1e-6, {"regularizers.output_preservation": 1.0}),
    "regularizers.prior_preservation": (True, {"optimizer.learning_rate": 1e-2}),
    "regularizers.single_pass": (True, {"regularizers.output_preservation": 1.0, "adapter.module_dropout": 0.5}),
    "saving.every_epochs": (9, {}), "saving.keep_best": (True, {"loop.keep_last": 1, "optimizer.learning_rate": 0.5}),
    "previews.every": (2, {}), "previews.steps": (3, {"previews.every": 4}), "previews.cfg": (1.0, {"previews.every": 4}),
    "previews.shift": (50.0, {"previews.every": 4}), "previews.width": (64, {"previews.every": 4}),
    "previews.height": (64, {"previews.every": 4}), "previews.frames": (9, {"previews.every": 4}),
    "previews.seed": (2, {"previews.every": 4}), "previews.seed_walk": ("steps", {"previews.every": 4}),
    "previews.at_start": (True, {"previews.every": 4}), "previews.sampler": ("uni_pc", {"previews.every": 4}),
    "previews.scheduler": ("beta", {"previews.every": 4}), "previews.skip_layers": ("1", {"previews.every": 4}),
    "previews.skip_scale": (9.0, _SKIPPED), "previews.skip_start": (0.9, _SKIPPED), "previews.skip_stop": (0.01, _SKIPPED),
}  # fmt: skip
# What the planner decides: the value that it is given, and keeps to.
PLANNED = {
    "checkpointing": True, "keep_attention": 3, "keep_linears": 2, "split_blocks": True, "ffn_pieces": 2,
    "offload_inputs": True, "offload_optimizer": True, "streamed_blocks": 7, "stream_from": "pageable", "mapped_blocks": 1,
}  # fmt: skip
# Option -> where it is seen, or why it can't be here.
ELSEWHERE = {
    "precision": "part of the model: tests/core/memory; the planner's bytes: tests/core/plan/test_estimate.py",
    "boundary": "becomes the window of noise levels: tests/core/settings/test_effects.py",
    "epochs": "becomes the steps: tests/core/data/test_counting.py",
    "device": "which device is taken: tests/core/test_devices.py",
    "alternate_every": "when the device is handed over: tests/core/launch/test_alternating.py",
    "shared_lora": "another run, through both experts: tests/core/train/test_shared_lora.py",
    "allow_other_expert": "a refusal: tests/core/train",
    "adapter.start_from": "below, with files", "adapter.merge_into_base": "below, with files",
    "adapter.merge_strength": "below, with files",
    "timesteps.shift_cap": "the miniature's samples are too small to reach it: tests/core/flow",
    "timesteps.sigma_min": "comes of the stage: refused in a recipe", "timesteps.sigma_max": "as timesteps.sigma_min",
    "memory.attention": "only GPUs have several kinds: tests/core/memory", "memory.compile": "kernels run on GPUs",
    "memory.cuda_graphs": "GPUs alone", "memory.plan": "below", "memory.budget_gb": "below",
    "memory.join_batches": "tests/core/train/test_joining.py",
    "memory.offload_linears": "blocks by kernels alone: tests/core/plan/test_moved.py",
    "memory.deterministic": "tests/core/train/test_kept_plan.py, tests/core/launch/test_deterministic.py; the bits: GPUs alone",
    "parallel.context": "several processes: tests/core/parallel",
    "parallel.base": "several processes: tests/core/train/test_sharded_job.py",
    **dict.fromkeys(
        (f"crepa.{name}" for name in
         ("weight", "encoder", "vae", "block", "distance", "tau", "neighbours", "image_size")),
        "with models in files: tests/core/train/test_crepa.py",
    ),
    **dict.fromkeys(
        ("previews.lora", "previews.other_lora", "previews.with_merged"),
        "with files: tests/core/train/test_preview_lora.py",
    ),
    "saving.copies": "files elsewhere: tests/core/train/test_saving.py", "saving.keep_copies": "as saving.copies",
    "track.tensorboard": "another process: tests/core/track", "track.wandb": "tests/core/track",
    "track.wandb_name": "tests/core/track", "track.webhook": "tests/core/track",
}  # fmt: skip


# The recipe's own, beside those of a stage and of a dataset -> where they are seen.
OF_THE_RECIPE = {
    **dict.fromkeys(("name", "author", "work", "lora.folder", "lora.precision", "lora.high", "lora.low"),
                    "tests/core/recipe/test_recipe.py"),
    "conditioning": "tests/core/recipe/test_image_to_video.py", "lora.weights": "tests/core/train/test_chosen.py",
    "lora.single": "tests/core/recipe/test_recipe.py",
    **dict.fromkeys(("models.high", "models.low", "models.vae", "models.text_encoder"),
                    "tests/core/recipe/test_pipeline.py"),
    "models.single": "tests/core/recipe/test_recipe.py", "models.tokenizer": "tests/core/recipe/test_odd_names.py",
    "models.clip_vision": "tests/core/recipe/test_image_to_video.py",
    "models.recovery_adapter": "tests/core/recipe/test_jobs.py",
    "samples.prompts": "tests/core/recipe/test_previews.py", "samples.negative": "tests/core/recipe/test_previews.py",
}  # fmt: skip


def with_values(job: Job, values: dict) -> Job:
    groups: dict[str, dict] = {}
    for place, value in values.items():
        group, name = place.split(".")
        groups.setdefault(group, {})[name] = value
    made = replace(job, **{group: replace(getattr(job, group), **fields) for group, fields in groups.items()})
    start, merge = made.adapter.start_from, made.adapter.merge_into_base
    return replace(
        made,
        start_identity=adapter_identity(start, "start_from") if start else "",
        merge_identity=adapter_identity(merge, "merge_into_base") if merge else "",
    )


@pytest.fixture(scope="module")
def seen():
    return {}


@pytest.fixture
def trains(job, tmp_path, seen):
    """What is seen of the job with these values: weights, losses, validation, previews, names of files."""
    first, second, third = job.data.samples  # the first and the third have one shape
    third = replace(with_class(tmp_path, third), is_regularization=True)
    samples = (with_class(tmp_path, first), replace(second, held_out=True), third)
    single = replace(job, stage="single", data=replace(job.data, samples=samples))  # whose previews have any size
    base = with_values(single, {"loop.caption_dropout": 0.0, **BASE})

    def train(values: dict):
        known = repr(sorted(values.items()))
        if known not in seen or "/" in known:
            seen[known] = _seen(with_values(base, values), tmp_path / hashlib.sha256(known.encode()).hexdigest()[:12])
        return seen[known]

    return train


def _seen(job: Job, path: Path):
    folder = RunFolder(path)
    path.mkdir()
    folder.write_job(job)
    run_job(folder, EventWriter(folder.events_path), CPU, lambda: False)
    events = EventReader(folder.events_path).read()
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), *path.glob("previews/*.safetensors")]):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(name.encode() + tensor.float().numpy().tobytes())
    numbers = [(e["event"], e["step"], e["loss"]) for e in events if e["event"] in ("step", "validation")]
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    return digest.hexdigest(), numbers, files


def test_every_option_is_listed_once():
    declared = {item.place for item in all_options(StageSettings)}
    planned = {f"memory.{name}" for name in PLANNED}
    assert declared == {*CHANGES, *planned, *ELSEWHERE}
    assert len(CHANGES) + len(planned) + len(ELSEWHERE) == len(declared)
    assert all(place.partition(".")[0] in Groups.__dataclass_fields__ for place in CHANGES)


def named_in(where: str) -> list[Path]:
    """The files that a sentence of ELSEWHERE names, also by their folder."""
    found = [ROOT / path for path in re.findall(r"tests/[\w/.]*\w", where)]
    return [file for path in found for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py")))]


def test_every_option_of_the_recipe_is_listed():
    others = {item.place for item in (*all_options(StageSettings), *all_options(DatasetSource))}
    assert {i.place for i in all_options(Recipe)} - others - {f"dataset.{place}" for place in others} == {
        *OF_THE_RECIPE
    }


@pytest.mark.parametrize("place", {**ELSEWHERE, **OF_THE_RECIPE})
def test_what_is_seen_elsewhere_is_there(place):
    where = {**ELSEWHERE, **OF_THE_RECIPE}[place]
    if "tests/" not in where:  # of this file, or as another option
        named = where.removeprefix("as ")
        assert named in ELSEWHERE or where.startswith(
            ("below", "GPUs alone", "kernels run on", "only GPUs", "comes of the stage")
        )
        return
    name = place.rpartition(".")[2]
    option = {item.place: item for item in all_options(Recipe)}[place]
    word = re.compile(rf"\b({re.escape(name)}|{re.escape(option.label)})\b")
    assert any(word.search(file.read_text(encoding="utf-8")) for file in named_in(where)), where


@pytest.mark.grid(3)
@pytest.mark.parametrize("place", CHANGES)
def test_a_change_is_seen(place, trains):
    value, others = CHANGES[place]
    assert trains({**others, place: value}) != trains(others)


def test_the_same_job_is_seen_the_same(trains, seen):
    first = trains({"loop.seed": 42})
    seen.clear()
    assert trains({"loop.seed": 42, "loop.batch_size": 1}) == first


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_keeps_to_what_is_chosen(name):
    chosen = {"streamed_blocks": 9} if name in ("stream_from", "mapped_blocks") else {}
    options = MemoryOptions(**{**chosen, name: PLANNED[name]})
    choice = planner(SHORT, vram=200, ram=256, options=options).choose()
    assert choice is not None
    assert getattr(choice.plan, name) == PLANNED[name]
    free = planner(SHORT, vram=200, ram=256, options=MemoryOptions(**chosen)).choose()
    assert free is not None
    assert getattr(free.plan, name) != PLANNED[name]


def test_files_that_the_training_starts_from(job, trains, tmp_path):
    lora = tmp_path / "lora.safetensors"
    folder = RunFolder(tmp_path / "made")
    folder.path.mkdir()
    folder.write_job(job)
    made = run_job(folder, EventWriter(folder.events_path), CPU, lambda: False)
    save_file(load_file(made), lora, metadata={"format": "pt"})
    plain = trains({})[0]
    started = trains({"adapter.start_from": str(lora)})[0]
    merged = {"adapter.merge_into_base": str(lora)}
    assert len({plain, started, trains(merged)[0], trains({**merged, "adapter.merge_strength": 3.0})[0]}) == 4


def test_a_manual_plan_and_a_budget(job):
    from wan_train.core.plan.decision import memory_of
    from wan_train.core.plan.planning import within

    assert memory_of(replace(job, memory=MemoryOptions(plan="manual"))) != memory_of(job)
    card = planner(SHORT).card
    assert within(card, MemoryOptions(budget_gb=5.0)).free < within(card, MemoryOptions()).free


def test_a_window_of_ones_own_is_refused():
    with pytest.raises(WanTrainError, match="the window comes from the stage"):
        StageSettings(timesteps=replace(StageSettings().timesteps, sigma_min=0.2))
