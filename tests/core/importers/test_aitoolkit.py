"""AI-Toolkit's jobs: what the guide's pages set, and where its options mean something else."""

import json

import pytest
from wan_train.tests.core.importers.given import AITOOLKIT, import_files, outcome

yaml = pytest.importorskip("yaml")


def bring(*replaced, text=AITOOLKIT):
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return import_files({"job.yaml": text})


def test_the_guides_job():
    imported = bring()
    recipe = imported.recipe
    assert (recipe.name, recipe.precision, recipe.lora.precision) == ("wan22_orbit_v1", "ara", "bf16")
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.optimizer.name) == (16, 16.0, "adamw8bit")
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (1e-4, 1e-4)  # YAML reads 1e-4 as a text
    assert (recipe.timesteps.sampling, recipe.loss.kind) == ("uniform", "mse")
    assert (recipe.loop.checkpoint_every, recipe.loop.keep_last) == (250, 4)
    assert (recipe.previews.every, recipe.previews.cfg) == (250, 3.5)
    (dataset,) = recipe.dataset
    assert (dataset.folder, dataset.caption_extension, dataset.trigger_word) == (
        "C:\\clips\\orbit",
        ".txt",
        "zxq_orbit",
    )
    assert (dataset.num_frames, dataset.frame_sampling, dataset.upscale) == (33, "even", False)
    assert (dataset.width, dataset.height, dataset.more_sizes) == (512, 512, "768")
    assert dataset.drop_captions == 0.05
    assert dict(imported.preview)["prompt"] == "[trigger] around a castle"
    assert any("models.recovery_adapter" in one for one in imported.to_fill)


@pytest.mark.parametrize(
    ("unload", "on_disk", "trigger", "told", "source"),
    [
        ("true", "false", "zxq_orbit", "changed", "trigger"),
        ("false", "false", "zxq_orbit", "not needed", "sidecar"),
        ("true", "true", "zxq_orbit", "not needed", "sidecar"),
        ("true", "false", "", "not supported", "sidecar"),
    ],
)
def test_an_unloaded_text_encoder_leaves_the_trigger_word_alone(unload, on_disk, trigger, told, source):
    imported = bring(
        ("cache_text_embeddings: true", f"cache_text_embeddings: {on_disk}\n        unload_text_encoder: {unload}"),
        ('trigger_word: "zxq_orbit"', f'trigger_word: "{trigger}"'),
    )
    assert outcome(imported, "train.unload_text_encoder")[0] == told
    assert imported.recipe.dataset[0].caption_source == source


@pytest.mark.parametrize(("batches", "told"), [(1, "mapped"), (4, "changed")])
def test_an_expert_changes_after_batches_there(batches, told):
    """SDTrainer.py, hook_train_loop: every batch of an accumulated step counts."""
    imported = bring(("gradient_accumulation: 1", f"gradient_accumulation: {batches}"))
    assert outcome(imported, "train.switch_boundary_every") == (told, {"alternate_every": 10})


def test_image_to_video_has_the_boundary_of_its_model():
    """wan22_14b_i2v_model.py keeps that of T2V, 875."""
    imported = bring(("arch: 'wan22_14b'", "arch: 'wan22_14b_i2v'"))
    assert any("set boundary to 0.875" in note for note in imported.notes)
    assert imported.recipe.boundary == 0.0  # the official one
    assert not any("boundary" in note for note in bring().notes)


def test_steps_count_both_experts():
    imported = bring()
    assert outcome(imported, "train.steps") == ("changed", {"loop.steps": 1500})
    assert list(imported.recipe.models.stages) == ["high", "low"]
    assert (outcome(imported, "train.switch_boundary_every"), imported.recipe.alternate_every) == (
        ("mapped", {"alternate_every": 10}), 10,
    )  # fmt: skip


def test_one_expert_has_all_steps():
    imported = bring(("train_low_noise: true", "train_low_noise: false"))
    assert outcome(imported, "train.steps") == ("mapped", {"loop.steps": 3000})
    assert list(imported.recipe.models.stages) == ["high"]
    assert outcome(imported, "train.switch_boundary_every") == ("not needed", {})
    assert imported.recipe.alternate_every == 0


def test_alpha_is_the_rank_whatever_is_said():
    assert outcome(bring(("linear_alpha: 16", "linear_alpha: 4")), "network.linear_alpha") == (
        "changed", {"adapter.alpha": 16.0},
    )  # fmt: skip
    imported = bring(("        linear_alpha: 16\n", ""), ("linear: 16", "linear: 32"))
    assert imported.recipe.adapter.alpha == 32.0


def test_one_strength_for_all_datasets_is_an_alpha():
    imported = bring(("network_weight: 1", "network_weight: 0.5"))
    assert outcome(imported, "datasets.network_weight") == ("changed", {"adapter.alpha": 8.0})
    assert outcome(imported, "network.linear_alpha") == ("changed", {"adapter.alpha": 8.0})
    assert imported.recipe.adapter.alpha == 8.0


@pytest.mark.parametrize("other", ["network_weight: 1", "flip_y: false", "network_weight: 0.25"], ids=str)
def test_strengths_of_their_own_are_told(other):
    block = AITOOLKIT[AITOOLKIT.index("        - folder_path") : AITOOLKIT.index("      train:")]
    two = block.replace("network_weight: 1", "network_weight: 0.5") + block.replace("network_weight: 1", other)
    imported = bring((block, two))
    assert outcomes(imported, "network_weight")[0] == "not supported"
    assert imported.recipe.adapter.alpha == 16.0
    assert outcome(bring(("network_weight: 1", "network_weight: 0")), "datasets.network_weight")[0] == "not supported"
    lokr = bring(('type: "lora"', 'type: "lokr"'), ("network_weight: 1", "network_weight: 0.5"))
    assert outcome(lokr, "datasets.network_weight")[0] == "not supported"


def test_json_is_the_same():
    as_json = import_files({"job.json": json.dumps(yaml.safe_load(AITOOLKIT))})
    assert as_json.recipe == bring().recipe


def test_defaults_of_its_own_are_taken():
    """config_modules.py: rank 4, learning rate 1e-6, 1000 steps, sigmoid, fp16, resolution 512 and one frame."""
    text = (
        "config:\n  name: a\n  process:\n    - model: {arch: wan21, name_or_path: Wan-AI/Wan2.1-T2V-1.3B-Diffusers}\n"
        "      datasets:\n        - folder_path: b\n"
    )
    recipe = bring(text=text).recipe
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.optimizer.learning_rate) == (4, 4.0, 1e-6)
    assert (recipe.loop.steps, recipe.timesteps.sampling, recipe.lora.precision) == (1000, "sigmoid", "fp16")
    (dataset,) = recipe.dataset
    assert (dataset.width, dataset.height, dataset.num_frames, dataset.aspect_buckets) == (512, 512, 1, True)


def test_several_datasets():
    block = AITOOLKIT[AITOOLKIT.index("        - folder_path") : AITOOLKIT.index("      train:")]
    other = block.replace("clips", "more").replace("33", "1").replace("is_reg: false", "is_reg: true")
    recipe = bring((block, block + other)).recipe
    assert [(one.folder, one.num_frames, one.regularization) for one in recipe.dataset] == [
        ("C:\\clips\\orbit", 33, False),
        ("C:\\more\\orbit", 1, True),
    ]


@pytest.mark.parametrize(
    ("more", "weight"), [("", 0.3), ("\n          loss_multiplier: 0.5", 0.15)], ids=["", "and own"]
)
def test_what_regularization_sets_count(more, weight):
    block = AITOOLKIT[AITOOLKIT.index("        - folder_path") : AITOOLKIT.index("      train:")]
    other = block.replace("is_reg: false", f"is_reg: true{more}")
    on = ("steps: 3000", "reg_weight: 0.3\n        steps: 3000")
    imported = bring((block, block + other), on)
    assert [one.loss_weight for one in imported.recipe.dataset] == [1.0, pytest.approx(weight)]
    assert outcome(imported, "train.reg_weight")[0] == "changed"
    assert outcome(bring(on), "train.reg_weight")[0] == "not needed"


@pytest.mark.parametrize(("switch", "found"), [("true", "not supported"), ("false", "not needed")])
def test_what_is_held_outside_of_a_mask(switch, found):
    lines = f"inverted_mask_prior: {switch}\n        inverted_mask_prior_multiplier: 0.3\n        steps: 3000"
    imported = bring(("steps: 3000", lines))
    assert outcome(imported, "train.inverted_mask_prior") == (found, {})
    assert outcome(imported, "train.inverted_mask_prior_multiplier") == (found, {})


def outcomes(imported, name):
    return [line.answer.outcome for line in imported.lines if line.given.key.endswith(name)]


def test_a_regularization_set_with_the_priors_of_the_model():
    block = AITOOLKIT[AITOOLKIT.index("        - folder_path") : AITOOLKIT.index("      train:")]
    other = block.replace("is_reg: false", "is_reg: true\n          prior_reg: true")
    assert bring((block, block + other)).recipe.regularizers.prior_preservation
    assert not bring().recipe.regularizers.prior_preservation
    plain = block.replace("is_reg: false", "is_reg: false\n          prior_reg: false")
    imported = bring((block, other + plain))  # what is off in one set is not off in the others
    assert imported.recipe.regularizers.prior_preservation
    assert outcomes(imported, "prior_reg") == ["mapped", "not needed"]
    imported = bring((block, other + other.replace("prior_reg: true", "prior_reg: false")))
    assert imported.recipe.regularizers.prior_preservation
    assert outcomes(imported, "prior_reg") == ["mapped", "not supported"]
    assert not bring((block, plain)).recipe.regularizers.prior_preservation


@pytest.mark.parametrize(
    ("qtype", "precision"), [("qfloat8", "fp8"), ("float8", "fp8"), ("int8", "int8"), ("uint4", "nf4")]
)
def test_quantization(qtype, precision):
    quoted = '"uint4|ostris/accuracy_recovery_adapters/wan22_14b_t2i_torchao_uint4.safetensors"'
    assert bring((quoted, qtype)).recipe.precision == precision


def test_without_quantization_it_is_bf16():
    assert bring(("quantize: true", "quantize: false")).recipe.precision == "bf16"


def test_eta_min_is_a_share_here():
    imported = bring(
        ("        loss_type: mse", "        lr_scheduler: cosine\n        lr_scheduler_params: {eta_min: 1e-5}")
    )
    assert imported.recipe.schedule.kind == "cosine"
    assert imported.recipe.schedule.floor == pytest.approx(0.1)


def test_linear_rises_there():
    at = "        loss_type: mse"
    assert outcome(bring((at, "        lr_scheduler: linear")), "train.lr_scheduler") == ("not supported", {})
    params = "{start_factor: 1.0, end_factor: 0.1}"
    schedule = bring((at, f"        lr_scheduler: linear\n        lr_scheduler_params: {params}")).recipe.schedule
    assert (schedule.kind, schedule.floor) == ("linear", 0.1)


def test_the_seed_is_the_process_own():
    assert bring(("device: cuda:0", "training_seed: 7")).recipe.loop.seed == 7


def test_output_preservation_is_ours_with_its_class():
    off = "diff_output_preservation: false"
    on = "diff_output_preservation: true\n        diff_output_preservation_class: person"
    imported = bring((off, on))
    assert outcome(imported, "train.diff_output_preservation") == ("mapped", {"regularizers.output_preservation": 1.0})
    assert imported.recipe.regularizers.output_preservation == 1.0
    assert [dataset.class_word for dataset in imported.recipe.dataset] == ["person"]
    stronger = bring((off, f"{on}\n        diff_output_preservation_multiplier: 0.5"))
    assert stronger.recipe.regularizers.output_preservation == 0.5
    without = bring((off, "diff_output_preservation: true"))
    assert outcome(without, "train.diff_output_preservation")[0] == "not supported"
    assert without.recipe.regularizers.output_preservation == 0
    is_off = bring((off, f"{off}\n        diff_output_preservation_class: person"))
    assert outcome(is_off, "train.diff_output_preservation")[0] == "not needed"
    assert [dataset.class_word for dataset in is_off.recipe.dataset] == [""]


def test_blank_preservation_is_ours():
    off = "diff_output_preservation: false"
    imported = bring((off, "blank_prompt_preservation: true\n        blank_prompt_preservation_multiplier: 2"))
    assert imported.recipe.regularizers.blank_preservation == 2.0
    assert bring((off, "blank_prompt_preservation: true")).recipe.regularizers.blank_preservation == 1.0
    assert bring((off, "blank_prompt_preservation: false")).recipe.regularizers.blank_preservation == 0.0


@pytest.mark.parametrize(("bias", "favoured"), [("content", "high"), ("style", "low")])
def test_bias_is_mapped_or_told(bias, favoured):
    found, values = outcome(bring(("'balanced'", bias)), "train.content_or_style")
    assert (found == "not supported") if not values else all(favoured in str(value) for value in values.values())


def with_network(lines):
    """The guide's job with these lines under `network`."""
    indented = "".join(f"        {line}\n" for line in lines)
    return bring(("        linear_alpha: 16\n", indented))


def test_a_lokr():
    imported = with_network(["lokr_factor: -1", "lokr_full_rank: true"])
    assert outcome(imported, "network.lokr_factor") == ("mapped", {"adapter.lokr_factor": 0})
    made = bring(
        ('type: "lora"', 'type: "lokr"'),
        ("        linear_alpha: 16\n", "        lokr_factor: 8\n        lokr_full_rank: true\n"),
    )
    adapter = made.recipe.adapter
    assert (adapter.kind, adapter.lokr_factor, adapter.lokr_full) == ("lokr", 8, True)


def test_layers_by_parts_of_their_names():
    kwargs = ["network_kwargs:", "  ignore_if_contains:", "    - ffn.net.2", "    - blocks.39.", "  rank_dropout: 0.1"]
    adapter = with_network(kwargs).recipe.adapter
    assert adapter.exclude.splitlines() == [r"\.ffn\.2$", r"^blocks\.39\."]
    assert adapter.rank_dropout == 0.1
    only = with_network(["network_kwargs:", "  only_if_contains: [attn1, attn2]"])
    assert only.recipe.adapter.targets == ("self_attn", "cross_attn")
    narrow = with_network(["network_kwargs:", "  only_if_contains: [attn1.to_q]"]).recipe.adapter
    assert (narrow.include, narrow.targets) == (r"\.self_attn\.q$", ("self_attn", "cross_attn", "ffn"))
    nothing = with_network(["network_kwargs:", "  only_if_contains: [double_blocks]"])
    assert outcome(nothing, "network.network_kwargs.only_if_contains")[0] == "not supported"


def test_a_lora_for_its_samples_alone():
    imported = bring(("name_or_path:", "inference_lora_path: /l/turbo.safetensors\n        name_or_path:"))
    assert imported.recipe.previews.lora == "/l/turbo.safetensors"


def test_loras_that_it_begins_with():
    assert with_network(["pretrained_lora_path: /l/a.safetensors"]).recipe.adapter.start_from == "/l/a.safetensors"


def test_differential_guidance_does_nothing_there_without_the_contrastive_one():
    on = "do_differential_guidance: true\n        differential_guidance_scale: 2\n        "
    alone = bring(("steps: 3000", on + "steps: 3000"))
    assert outcome(alone, "train.do_differential_guidance")[0] == "not needed"
    assert alone.recipe.loss.differential_guidance == 1.0
    both = bring(("steps: 3000", on + "do_guidance_loss: true\n        steps: 3000"))
    assert both.recipe.loss.differential_guidance == 2.0
    assert both.recipe.loss.contrastive_guidance == 3.0


@pytest.mark.parametrize(("switch", "scale"), [("true", 3.5), ("false", 0.0)])
def test_contrastive_guidance_and_a_training_adapter(switch, scale):
    more = f"do_guidance_loss: {switch}\n        guidance_loss_target: 3.5\n        guidance_loss_schedule: sigma\n        "
    imported = bring(
        ("steps: 3000", more + "steps: 3000"),
        ("name_or_path:", "assistant_lora_path: /l/undo.safetensors\n        name_or_path:"),
    )
    assert imported.recipe.loss.contrastive_guidance == scale
    assert imported.recipe.loss.contrastive_schedule == ("sigma" if scale else "constant")
    assert imported.recipe.adapter.merge_into_base == "/l/undo.safetensors"
    assert imported.recipe.previews.every > 0
    assert not imported.recipe.previews.with_merged
