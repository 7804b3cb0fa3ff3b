"""SimpleTuner's files: what the guide shows, and where its options mean something else."""

import json

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.importers.report import report
from wan_train.tests.core.importers.given import (
    PROMPTS,
    SETUPS,
    SIMPLETUNER,
    SIMPLETUNER_DATASETS,
    import_files,
    line,
    outcome,
)


def bring(datasets=SIMPLETUNER_DATASETS, prompts="", **changed):
    """The guide's configuration with other values; None leaves one out."""
    config = {name: value for name, value in {**json.loads(SIMPLETUNER), **changed}.items() if value is not None}
    files = {"config.json": json.dumps(config), "multidatabackend.json": datasets}
    return import_files({**files, **({"user_prompt_library.json": prompts} if prompts else {})})


def dataset(**changed):
    first, *others = json.loads(SIMPLETUNER_DATASETS)
    return json.dumps([{**first, **changed}, *others])


def test_the_guides_setup():
    imported = import_files(SETUPS["simpletuner"])
    recipe = imported.recipe
    assert imported.family.title == "Wan 2.1 T2V 1.3B"
    assert (recipe.loop.steps, recipe.loop.batch_size, recipe.loop.caption_dropout) == (400_000, 2, 0.1)
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == ("lion", 5e-5, 0.0)
    assert (recipe.schedule.kind, recipe.schedule.warmup_steps) == ("cosine", 400)
    assert (recipe.timesteps.sampling, recipe.timesteps.shift, recipe.precision) == ("shift", 3.0, "bf16")
    (made,) = recipe.dataset
    assert (made.folder, made.width, made.height, made.aspect_buckets) == ("datasets/films", 480, 480, True)
    preview = dict(imported.preview)
    assert (preview["prompt"], preview["width"], preview["height"], preview["num_frames"]) == (
        "two cats that box",
        832,
        480,
        81,
    )


def test_no_repeats_are_one_time():
    imported = bring()
    assert outcome(imported, "repeats", dataset=0) == ("changed", {"dataset.repeats": 1})
    assert bring(dataset(repeats=9)).recipe.dataset[0].repeats == 10


@pytest.mark.parametrize(("given", "kept"), [(75, 73), (81, 81), (77, 73), (1, 1)])
def test_frames_are_8n_and_1_there(given, kept):
    made = bring(dataset(video={"num_frames": given, "min_frames": given})).recipe.dataset[0]
    assert (made.num_frames, made.short_clips) == (kept, "skip")


def test_lengths_as_buckets_without_num_frames_are_what_simpletuner_makes_of_them():
    by_length = {"bucket_strategy": "resolution_frames", "frame_interval": 25, "min_frames": 25, "max_frames": 250}
    imported = bring(dataset(video=by_length))
    assert imported.recipe.dataset[0].num_frames == 121
    assert outcome(imported, "video.bucket_strategy", dataset=0) == ("changed", {"dataset.num_frames": 121})
    assert "takes the first 5 seconds of each clip" in report(imported)
    assert outcome(imported, "video.frame_interval", dataset=0) == ("not needed", {})
    given = bring(dataset(video={**by_length, "num_frames": 49, "min_frames": 49}))
    assert given.recipe.dataset[0].num_frames == 49
    assert outcome(given, "video.bucket_strategy", dataset=0) == ("not needed", {})
    assert outcome(bring(dataset(video={"bucket_strategy": "aspect_ratio"})), "video.bucket_strategy", dataset=0) == (
        "not needed", {},
    )  # fmt: skip


def test_pictures_have_no_lengths():
    pictures = dataset(dataset_type="image", video={"bucket_strategy": "resolution_frames"})
    assert outcome(bring(pictures), "video.bucket_strategy", dataset=0) == ("not needed", {})


def test_alpha_that_is_not_given_is_the_rank():
    assert bring(lora_rank=24).recipe.adapter.alpha == 24.0
    assert bring(lora_rank=24, lora_alpha=12).recipe.adapter.alpha == 12.0


def test_attention_alone_has_a_lora_there():
    assert bring().recipe.adapter.targets == ("self_attn", "cross_attn")
    assert bring(peft_lora_target_modules=["attn1.to_q", "ffn.net.0.proj"]).recipe.adapter.targets == (
        "self_attn",
        "ffn",
    )


@pytest.mark.parametrize(
    ("kind", "value", "pixels"),
    [("pixel_area", 480, 480), ("area", 0.25, 496), ("area", 1.0, 992), ("pixel", 512, 512)],
)
def test_kinds_of_size(kind, value, pixels):
    made = bring(dataset(resolution=value, resolution_type=kind)).recipe.dataset[0]
    assert (made.width, made.height) == (pixels, pixels)


def test_clipping_by_value_is_no_clipping_of_the_length():
    """Its default, and the guide's: max_grad_norm 0.01 is then no length."""
    imported = bring()
    values = outcome(imported, "max_grad_norm")[1]
    by_value = outcome(imported, "grad_clip_method")[1]
    assert bool(values) == bool(by_value), "the number counts where the way of clipping does"
    assert bring(grad_clip_method="norm").recipe.optimizer.max_grad_norm == 0.01


def test_without_a_shift_it_is_sigmoid():
    assert bring(flow_schedule_shift=0).recipe.timesteps.sampling == "sigmoid"
    assert bring(flow_use_uniform_schedule=True, flow_schedule_shift=0).recipe.timesteps.sampling == "uniform"
    shifted = bring(flow_schedule_shift=3, flow_use_uniform_schedule=True).recipe.timesteps
    assert (shifted.sampling, shifted.shift) == ("shifted_uniform", 3.0)


def test_a_shift_moves_the_beta_distribution_too():
    """helpers/models/common.py, sample_flow_sigmas: uniform goes before beta, and the shift comes over either."""
    made = bring(flow_use_beta_schedule=True, flow_beta_schedule_beta=3, flow_schedule_shift=4).recipe.timesteps
    assert (made.sampling, made.beta_b, made.shift) == ("shifted_beta", 3.0, 4.0)
    for still in (0, 1):
        assert bring(flow_use_beta_schedule=True, flow_schedule_shift=still).recipe.timesteps.sampling == "beta"
    both = bring(flow_use_beta_schedule=True, flow_use_uniform_schedule=True)
    assert both.recipe.timesteps.sampling == "shifted_uniform"
    assert outcome(both, "flow_use_beta_schedule")[0] == "not needed"


@pytest.mark.parametrize(
    ("other", "kept"), [("flow_use_uniform_schedule", "uniform"), ("flow_use_beta_schedule", "beta")]
)
def test_a_shift_by_size_goes_with_the_sigmoid_alone(other, kept):
    imported = bring(**{other: True}, flow_schedule_auto_shift=True, flow_schedule_shift=0)
    assert imported.recipe.timesteps.sampling == kept
    assert outcome(imported, "flow_schedule_auto_shift")[0] == "not supported"
    alone = bring(flow_schedule_auto_shift=True, flow_schedule_shift=0)
    assert alone.recipe.timesteps.sampling == "auto_shift"


def test_how_often_a_dataset_is_drawn_is_told():
    first, *others = json.loads(SIMPLETUNER_DATASETS)
    alone = bring(json.dumps([{**first, "probability": 0.5}, *others]))
    assert outcome(alone, "probability", dataset=0)[0] == "not needed"
    second = {**first, "id": "more", "instance_data_dir": "datasets/more", "probability": 0.3}
    several = bring(json.dumps([first, second, *others]))
    told = line(several, "probability", dataset=1).answer
    assert (told.outcome, "dataset.repeats" in told.why) == ("not supported", True)


def test_experts_have_a_shift_of_their_own():
    """helpers/models/wan/model.py sets 5 for the stages of Wan 2.2."""
    imported = bring(model_flavour="i2v-14b-2.2-low", flow_schedule_shift=None)
    assert imported.recipe.timesteps.shift == 5.0
    assert (list(imported.recipe.models.stages), imported.recipe.conditioning) == (["low"], "first frame")


def test_what_a_flavour_of_one_expert_sets_by_itself():
    """helpers/models/wan/model.py, setup_model_flavour: whatever the configuration says."""
    imported = bring(model_flavour="i2v-14b-2.2-high", flow_schedule_auto_shift=True)
    recipe = imported.recipe
    assert (recipe.timesteps.sampling, recipe.timesteps.shift) == ("shift", 5.0)
    assert (recipe.previews.steps, recipe.previews.cfg) == (40, 3.5)
    assert outcome(imported, "flow_schedule_shift")[0] == outcome(imported, "validation_guidance")[0] == "changed"
    assert outcome(imported, "flow_schedule_auto_shift")[0] == "not needed"
    assert any("all noise levels" in note for note in imported.notes)
    without = bring(model_flavour="i2v-14b-2.2-high", flow_schedule_shift=0).recipe
    assert (without.timesteps.sampling, without.timesteps.shift) == ("shift", 5.0)
    even = bring(model_flavour="i2v-14b-2.2-high", flow_use_uniform_schedule=True, flow_schedule_shift=3)
    assert (even.recipe.timesteps.sampling, even.recipe.timesteps.shift) == ("shifted_uniform", 5.0)
    assert outcome(even, "flow_schedule_shift")[0] == "changed"
    single = bring()
    assert outcome(single, "flow_schedule_shift") == ("mapped", {"timesteps.shift": 3.0})
    assert not any("all noise levels" in note for note in single.notes)


def test_previews_are_by_uni_pc_unless_something_else_is_said():
    assert bring().recipe.previews.sampler == "uni_pc"
    assert bring(validation_noise_scheduler="euler").recipe.previews.sampler == "euler"
    assert bring(validation_noise_scheduler="ddim").recipe.previews.sampler == "ddim"
    assert outcome(bring(validation_noise_scheduler="ddpm"), "validation_noise_scheduler")[0] == "not supported"


def test_a_library_is_told_once():
    text = report(bring(prompts=PROMPTS))
    assert text.count("samples.prompts = ") == 1
    assert "a note with 2 further prompts" in text
    assert "chef_mine = mine as a cook\n" in text


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("wan_force_2_1_time_embedding", True, "not needed"),
        ("pretrained_transformer_subfolder", "none", "not needed"),
        ("wan_validation_load_other_stage", True, "not needed"),
        ("validation_preview", True, "not supported"),
        ("validation_preview", False, "not needed"),
        ("validation_preview_steps", 3, "not needed"),  # without validation_preview
    ],
)
def test_what_the_guide_has_and_nothing_has_to_be_said_for(name, value, told):
    assert outcome(bring(**{name: value}), name)[0] == told


def test_both_experts():
    texts = {
        f"{stage}.json": json.dumps(
            {**json.loads(SIMPLETUNER), "model_flavour": f"i2v-14b-2.2-{stage}", "lora_rank": rank}
        )
        for stage, rank in (("high", 8), ("low", 32))
    }
    recipe = import_files({**texts, "multidatabackend.json": SIMPLETUNER_DATASETS}).recipe
    assert (recipe.settings("high").adapter.rank, recipe.settings("low").adapter.rank) == (8, 32)


def test_names_with_dashes_and_a_command_line():
    dashed = json.dumps({f"--{name}": value for name, value in json.loads(SIMPLETUNER).items()})
    flags = " \\\n".join(
        f"--{name} '{json.dumps(value) if isinstance(value, dict) else value}'"
        for name, value in json.loads(SIMPLETUNER).items()
        if name != "tread_config"
    )
    command = import_files({"train.sh": f"simpletuner train {flags}", "multidatabackend.json": SIMPLETUNER_DATASETS})
    for made in (import_files({"config.json": dashed, "multidatabackend.json": SIMPLETUNER_DATASETS}), command):
        assert made.recipe.optimizer == bring().recipe.optimizer
        assert made.recipe.loop == bring().recipe.loop


def test_a_library_of_prompts_is_kept():
    preview = dict(bring(prompts=PROMPTS).preview)
    assert preview["prompt"] == "two cats that box"
    assert preview["further.chef_mine"] == "mine as a cook"
    assert dict(bring(prompts=PROMPTS, validation_prompt=None).preview)["prompt"] == "a film of mine, drawn"


def test_a_dataset_that_is_switched_off():
    both = json.loads(dataset(id="on"))
    both.append({**both[0], "instance_data_dir": "datasets/off", "disabled": True})
    recipe = bring(json.dumps(both)).recipe
    assert [(one.folder, one.enabled) for one in recipe.dataset] == [("datasets/films", True), ("datasets/off", False)]


def test_a_regularization_set_learns_what_the_model_says_itself():
    both = json.loads(dataset(id="on"))
    both.append({**both[0], "id": "set", "instance_data_dir": "datasets/known", "is_regularisation_data": True})
    recipe = bring(json.dumps(both)).recipe
    assert [one.regularization for one in recipe.dataset] == [False, True]
    assert recipe.regularizers.prior_preservation
    both[-1]["is_regularisation_data"] = False
    assert not bring(json.dumps(both)).recipe.regularizers.prior_preservation


def test_the_name_is_that_of_the_hub():
    imported = bring(hub_model_id="ann/wan-films")
    assert imported.recipe.name == "wan-films"
    assert outcome(imported, "push_to_hub")[0] == "not needed"


def test_what_routes_tokens_is_told():
    imported = bring()
    assert line(imported, "tread_config.routes[0].selection_ratio").answer.outcome == "mapped"
    assert imported.recipe.tread.routes == "2 to -2: 0.1"


def test_what_takes_more_forwards():
    imported = bring(
        crepa_enabled=True, crepa_block_index=3, crepa_cumulative_neighbors=True, crepa_scheduler="cosine",
        scheduled_sampling_max_step_offset=8, scheduled_sampling_probability=0.25, scheduled_sampling_strategy="biased_late",
    )  # fmt: skip
    crepa, rollout = imported.recipe.crepa, imported.recipe.rollout
    assert (crepa.weight, crepa.block, crepa.neighbours) == (0.5, 3, "all")
    assert (rollout.steps, rollout.probability, rollout.strategy, rollout.direction) == (8, 0.25, "biased_late", 10.0)
    assert outcome(imported, "crepa_scheduler")[0] == "not supported"
    assert outcome(bring(crepa_block_index=3), "crepa_block_index")[0] == "not needed"


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match="the configuration trains flux"):
        bring(model_family="flux")
    with pytest.raises(ConfigError, match=r"no model like vace-14b-2\.1"):
        bring(model_flavour="vace-14b-2.1")


@pytest.mark.parametrize(
    ("word", "precision"), [("int8-quanto", "int8"), ("fp8-torchao", "fp8"), ("nf4-bnb", "nf4"), ("int4-quanto", "nf4")]
)
def test_precisions(word, precision):
    assert bring(base_model_precision=word).recipe.precision == precision


LOKR = {
    "algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "factor": 8,
    "apply_preset": {
        "target_module": ["Attention", "FeedForward"],
        "module_algo_map": {"Attention": {"factor": 8}, "FeedForward": {"factor": 4}},
    },
}  # fmt: skip


def bring_lycoris(config, **changed):
    chosen = {
        **json.loads(SIMPLETUNER),
        "lora_type": "lycoris",
        "lycoris_config": "config/lycoris_config.json",
        **changed,
    }
    files = {"config.json": json.dumps(chosen), "multidatabackend.json": SIMPLETUNER_DATASETS}
    return import_files({**files, "lycoris_config.json": json.dumps(config)} if config else files)


def test_the_file_of_lycoris_is_read():
    imported = bring_lycoris(LOKR, lora_rank=64, lora_alpha=64)
    adapter = imported.recipe.adapter
    assert (adapter.kind, adapter.lokr_factor, adapter.lokr_full) == ("lokr", 8, True)
    assert (adapter.rank, adapter.dropout, adapter.targets) == (16, 0.0, ("self_attn", "cross_attn", "ffn"))
    assert outcome(imported, "lora_type")[0] == "mapped"
    assert outcome(imported, "lora_rank") == ("not needed", {})
    assert outcome(imported, "lycoris.linear_dim") == ("changed", {"adapter.lokr_full": True})
    assert outcome(imported, "lycoris.apply_preset.module_algo_map.Attention.factor")[0] == "not needed"
    assert outcome(imported, "lycoris.apply_preset.module_algo_map.FeedForward.factor")[0] == "not supported"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"algo": "lora", "linear_dim": 32, "linear_alpha": 8}, {"kind": "lora", "rank": 32, "alpha": 8.0}),
        ({"algo": "locon", "linear_dim": 4, "dora_wd": True}, {"kind": "dora", "rank": 4}),
        ({"algo": "loha", "linear_dim": 6, "rank_dropout": 0.2}, {"kind": "loha", "rank": 6, "rank_dropout": 0.2}),
        (
            {"algo": "lokr", "linear_dim": 8, "factor": -1},
            {"kind": "lokr", "rank": 8, "lokr_factor": 0, "lokr_full": False},
        ),
        ({"algo": "lokr", "full_matrix": True, "linear_dim": 8, "linear_alpha": 3}, {"lokr_full": True, "alpha": 16.0}),
        ({"algo": "diag-oft", "linear_dim": 16, "linear_alpha": 1}, {"kind": "oft", "rank": 16, "alpha": 16.0}),
        ({"algo": "tlora", "linear_dim": 64, "linear_alpha": 32}, {"kind": "tlora", "rank": 64, "tlora_min_rank": 1}),
        (
            {"algo": "tlora", "linear_dim": 64, "tlora_min_rank": 8, "tlora_alpha": 2.0},
            {"tlora_min_rank": 8, "tlora_power": 2.0},
        ),
        (
            {"algo": "lora", "linear_dim": 4, "apply_preset": {"target_module": ["FeedForward", "attn1"]}},
            {"targets": ("self_attn", "ffn")},
        ),
    ],
    ids=str,
)
def test_kinds_of_lycoris(config, expected):
    adapter = bring_lycoris(config | {"multiplier": 1.0, "apply_preset": config.get("apply_preset", {})}).recipe.adapter
    assert {name: getattr(adapter, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"algo": "full"}, "algo"), ({"algo": "boft"}, "algo"), ({"algo": "lora", "multiplier": 0.5}, "multiplier"),
        ({"algo": "loha", "dora_wd": True}, "dora_wd"), ({"algo": "lora", "use_scalar": True}, "use_scalar"),
        ({"algo": "diag-oft", "rescaled": True}, "rescaled"), ({"algo": "lora", "something": 1}, "something"),
        ({"algo": "lora", "apply_preset": {"target_module": ["Conv2d"]}}, "apply_preset.target_module"),
    ],
    ids=str,
)  # fmt: skip
def test_what_of_lycoris_is_not_here_is_told(config, key):
    imported = bring_lycoris({"linear_dim": 4, "linear_alpha": 1, **config})
    assert outcome(imported, f"lycoris.{key}")[0] == "not supported"


def test_without_the_file_of_lycoris_it_is_asked_for():
    imported = bring_lycoris(None, lora_rank=64)
    assert "lycoris_config.json" in line(imported, "lora_type").answer.why
    assert imported.recipe.adapter.rank == 64
    assert outcome(bring_lycoris(LOKR, lora_type="standard"), "lycoris.factor")[0] == "not needed"


def test_dora_is_of_columns_here():
    imported = bring(use_dora=True)
    assert outcome(imported, "use_dora") == ("changed", {"adapter.kind": "dora"})
    assert bring(use_dora=False).recipe.adapter.kind == "lora"
