"""diffusion-pipe's two files, and where its options mean something else."""

import pytest
from wan_train.core.errors import ConfigError
from wan_train.tests.core.importers.given import DIFFUSION_PIPE, DIFFUSION_PIPE_DATASET, SETUPS, import_files, outcome

HIGH = (
    DIFFUSION_PIPE.replace("low_noise", "high_noise")
    .replace("min_t = 0\n", "min_t = 0.875\n")
    .replace("max_t = 0.875", "max_t = 1")
)


def bring(*replaced, dataset=DIFFUSION_PIPE_DATASET):
    text = DIFFUSION_PIPE
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return import_files({"config.toml": text, "dataset.toml": dataset})


def test_the_pair():
    imported = import_files(SETUPS["diffusion_pipe"])
    recipe = imported.recipe
    assert imported.family.title == "Wan 2.2 T2V A14B"
    assert recipe.models.stages == {"low": "/models/wan2.2_t2v_low_noise_14B_fp16.safetensors"}
    assert (recipe.boundary, recipe.precision, recipe.lora.folder) == (0.875, "fp8", "/data/runs/mine")
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (32, 32.0)
    assert (recipe.loop.steps, recipe.epochs, recipe.loop.gradient_accumulation) == (1500, 0, 4)
    assert (recipe.optimizer.name, recipe.optimizer.beta2, recipe.schedule.warmup_steps) == ("adamw", 0.99, 10)
    assert (recipe.memory.streamed_blocks, recipe.memory.offload_inputs) == (32, True)
    assert [(one.folder, one.repeats, one.num_frames) for one in recipe.dataset] == [
        ("/data/grey", 2, 33),
        ("/data/colour", 5, 33),
    ]


def test_both_experts():
    recipe = import_files(
        {"high.toml": HIGH, "low.toml": DIFFUSION_PIPE, "dataset.toml": DIFFUSION_PIPE_DATASET}
    ).recipe
    assert list(recipe.models.stages) == ["high", "low"]
    assert (recipe.high, recipe.low, recipe.boundary) == ({}, {}, 0.875)


def test_a_window_outside_of_model_had_no_effect():
    imported = bring(("min_t = 0\nmax_t = 0.875\n", ""), ("epochs = 1000", "epochs = 1000\nmax_t = 0.875"))
    assert outcome(imported, "max_t")[0] == "not needed"
    assert imported.recipe.boundary == 0.0


def test_a_shift_moves_the_bell():
    assert bring().recipe.timesteps.sampling == "sigmoid"
    timesteps = bring(("min_t = 0", "shift = 3\nmin_t = 0")).recipe.timesteps
    assert (timesteps.sampling, timesteps.shift) == ("shift", 3.0)


def test_a_shift_by_size():
    """models/wan/wan.py: shift goes first."""
    assert bring(("min_t = 0", "flux_shift = true\nmin_t = 0")).recipe.timesteps.sampling == "flux_shift"
    assert bring(("min_t = 0", "flux_shift = false\nmin_t = 0")).recipe.timesteps.sampling == "sigmoid"
    both = bring(("min_t = 0", "flux_shift = true\nshift = 3\nmin_t = 0"))
    assert (both.recipe.timesteps.sampling, outcome(both, "model.flux_shift")[0]) == ("shift", "not needed")


def test_a_file_to_fuse_is_none_of_wans():
    fused = "type = 'lora'\nfuse_adapters = [{path = 'a.safetensors', weight = 0.7}]"
    imported = bring(("type = 'lora'", fused))
    assert imported.recipe.adapter.merge_into_base == ""
    assert outcome(imported, "adapter.fuse_adapters[0].path")[0] == "not needed"


def test_several_sizes():
    dataset = DIFFUSION_PIPE_DATASET.replace("[512]", "[[640, 360], 512]").replace("[640, 360]", "[640, 368]")
    made = bring(dataset=dataset).recipe.dataset[0]
    assert (made.width, made.height, made.more_sizes) == (640, 368, "512")


def test_frame_buckets():
    dataset = DIFFUSION_PIPE_DATASET.replace("[1, 33]", "[1, 33, 66]")
    made = bring(dataset=dataset).recipe.dataset[0]
    assert (made.num_frames, made.short_clips) == (65, "shorten")
    assert bring().recipe.dataset[0].short_clips == "skip"


def test_epochs_decide_where_there_are_no_steps():
    recipe = bring(("max_steps = 1500\n", "")).recipe
    assert (recipe.epochs, recipe.loop.steps) == (1000, 2000)


def test_a_prefix_is_a_trigger_word():
    dataset = DIFFUSION_PIPE_DATASET.replace("[1, 33]", "[1, 33]\ncaption_prefix = 'ohwx, '")
    assert {one.trigger_word for one in bring(dataset=dataset).recipe.dataset} == {"ohwx"}


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match="the configuration trains hunyuan-video"):
        bring(("type = 'wan'", "type = 'hunyuan-video'"))


def test_a_model_that_its_name_does_not_tell_is_refused():
    with pytest.raises(ConfigError, match="which Wan model"):
        bring(("/models/wan2.2_t2v_low_noise_14B_fp16.safetensors", "/models/a.safetensors"), ("Wan2.2-T2V-A14B", "b"))


def test_checkpoints_by_epochs():
    assert bring().recipe.saving.every_epochs == 5
    states = "checkpoint_every_n_epochs = 7"
    assert bring(("save_every_n_epochs = 5", states)).recipe.saving.every_epochs == 7
    both = bring(("save_every_n_epochs = 5", f"save_every_n_epochs = 5\n{states}"))
    assert both.recipe.saving.every_epochs == 5
    assert outcome(both, "checkpoint_every_n_epochs")[0] == "not needed"
