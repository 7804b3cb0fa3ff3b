"""musubi-tuner's files: what guide and documents have people write, and where its options mean something else."""

import re

import pytest
from wan_train.core.adapters.places import places
from wan_train.core.errors import ConfigError
from wan_train.core.importers.layers import LEAVES
from wan_train.tests.core.importers.given import (
    FLAGS,
    MUSUBI_COMMANDS,
    MUSUBI_DATASET,
    SETUPS,
    import_files,
    line,
    outcome,
)


def bring(commands=MUSUBI_COMMANDS, dataset=MUSUBI_DATASET, name="train.sh"):
    files = {name: commands} if commands else {}
    return import_files({**files, **({"dataset.toml": dataset} if dataset else {})})


def one(flags, dataset=MUSUBI_DATASET, task="t2v-14B", dit="/m/wan2.1_t2v_14B_fp16.safetensors"):
    """A single model's command with these flags."""
    start = f"python wan_train_network.py --task {task} --dit {dit} --network_module networks.lora_wan"
    return bring(f"{start} {flags}", dataset)


def test_the_guides_two_commands_are_one_recipe():
    recipe = import_files(SETUPS["musubi"]).recipe
    assert (recipe.models.high, recipe.models.low) == (
        "/models/wan2.2_t2v_high_noise_14B_fp16.safetensors", "/models/wan2.2_t2v_low_noise_14B_fp16.safetensors",
    )  # fmt: skip
    assert recipe.models.text_encoder == "/models/models_t5_umt5-xxl-enc-bf16.pth"
    assert (recipe.name, recipe.lora.high, recipe.lora.low) == (
        "WAN2.2_mine",
        "WAN2.2-HighNoise_mine",
        "WAN2.2-LowNoise_mine",
    )
    assert (recipe.boundary, recipe.epochs, recipe.precision) == (0.875, 100, "fp8")
    for stage in ("high", "low"):
        settings = recipe.settings(stage)
        assert (settings.adapter.rank, settings.adapter.alpha, settings.loop.seed) == (16, 16.0, 5)
        assert (settings.optimizer.learning_rate, settings.optimizer.weight_decay) == (3e-4, 0.1)
        assert settings.optimizer.max_grad_norm == 0
        assert (settings.timesteps.sampling, settings.timesteps.shift) == ("shift", 1.0)
        assert (settings.schedule.kind, settings.schedule.power, settings.schedule.floor) == ("polynomial", 8.0, 5e-5)
    (dataset,) = recipe.dataset
    assert (dataset.folder, dataset.width, dataset.height, dataset.upscale) == ("/data/pictures", 960, 960, True)
    assert (recipe.high, recipe.low) == ({}, {})


def test_what_differs_between_the_experts_is_theirs():
    low = FLAGS.format(stage="low", name="LowNoise", low=0, high=875).replace("3e-4", "1e-4").replace("dim 16", "dim 8")
    recipe = bring(FLAGS.format(stage="high", name="HighNoise", low=875, high=1000) + "\n" + low).recipe
    assert recipe.settings("high").optimizer.learning_rate == 3e-4
    assert recipe.settings("low").optimizer.learning_rate == 1e-4
    assert (recipe.settings("high").adapter.rank, recipe.settings("low").adapter.rank) == (16, 8)


@pytest.mark.parametrize(
    ("stage", "window", "trained"), [("high", "875, 1000", "0 to 125"), ("low", "0, 875", "125 to 1000")]
)
def test_a_window_with_sigma_is_at_the_other_end_there(stage, window, trained):
    """training/trainer_base.py: indices = u (max - min) + min of a table of timesteps that falls from 1000 to 1."""
    low, high = window.split(", ")
    command = FLAGS.format(stage=stage, name=stage, low=low, high=high).replace("--timestep_sampling shift", "")
    imported = bring(command)
    answer = line(imported, "min_timestep" if stage == "high" else "max_timestep").answer
    assert (answer.outcome, dict(answer.values)) == ("changed", {"boundary": 0.875})
    assert f"trains {trained};" in answer.why
    table = [1000 - index for index in range(1000)]
    inside = [table[index] for index in range(int(low), int(high))]
    assert trained == f"{min(inside) - 1} to {max(inside)}"


def test_a_bell_with_sigma_is_squeezed_whatever_is_said():
    flags = FLAGS.format(stage="low", name="low", low=0, high=875)
    bell = flags.replace("--timestep_sampling shift", "--timestep_sampling sigma --weighting_scheme logit_normal")
    assert outcome(bring(bell), "preserve_distribution_shape") == ("changed", {"timesteps.window": "squeezed"})
    assert bring(bell).recipe.timesteps.window == "squeezed"
    plain = bell.replace("--preserve_distribution_shape", "")
    assert outcome(bring(plain), "preserve_distribution_shape") == ("mapped", {"timesteps.window": "squeezed"})


def test_the_embedding_of_time_is_that_of_the_file():
    assert outcome(one("--force_v2_1_time_embedding"), "force_v2_1_time_embedding")[0] == "not needed"


def test_the_limit_of_weights_is_ours():
    assert one("--scale_weight_norms 1.5").recipe.regularizers.max_weight_norm == 1.5


def test_one_expert_alone():
    imported = bring(FLAGS.format(stage="low", name="LowNoise", low=0, high=875))
    assert list(imported.recipe.models.stages) == ["low"]
    assert outcome(imported, "max_timestep") == ("mapped", {"boundary": 0.875})


def test_both_experts_in_one_command():
    imported = one(
        "--dit_high_noise /m/high.safetensors --timestep_boundary 900", task="i2v-A14B", dit="/m/low.safetensors"
    )  # fmt: skip
    recipe = imported.recipe
    assert (recipe.models.high, recipe.models.low) == ("/m/high.safetensors", "/m/low.safetensors")
    assert (recipe.boundary, recipe.conditioning) == (0.9, "first frame")


def test_which_expert_is_not_guessed():
    same = FLAGS.format(stage="high", name="HighNoise", low=875, high=1000)
    with pytest.raises(ConfigError, match="which expert each of them trains can't be told"):
        bring(f"{same}\n{same}")


def test_defaults_of_its_own_are_taken():
    """parser_common.py and networks/lora.py: alpha 1, rank 4, 1600 steps, learning rate 2e-6."""
    recipe = one("--sdpa").recipe
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (4, 1.0)
    assert (recipe.loop.steps, recipe.optimizer.learning_rate) == (1600, 2e-6)
    assert recipe.timesteps.sampling == "uniform"
    assert one("--max_train_epochs 3").recipe.loop.steps == 2000  # epochs decide


def test_no_upscale_is_reversed():
    dataset = MUSUBI_DATASET.replace("bucket_no_upscale = false", "bucket_no_upscale = true")
    assert bring(dataset=dataset).recipe.dataset[0].upscale is False


def test_a_dataset_without_buckets_has_none():
    dataset = '[[datasets]]\nimage_directory = "a"\n'
    (made,) = bring(dataset=dataset).recipe.dataset
    assert (made.aspect_buckets, made.width, made.height) == (False, 960, 544)


VIDEO = """
[[datasets]]
video_directory = "clips"
resolution = [512, 300]
target_frames = {frames}
frame_extraction = "{extraction}"
{more}
"""


def video(frames="[1, 25, 45]", extraction="head", more=""):
    return bring(dataset=VIDEO.format(frames=frames, extraction=extraction, more=more))


def test_several_numbers_of_frames_are_several_datasets():
    made = video().recipe.dataset
    assert [one.num_frames for one in made] == [1, 25, 45]
    assert {one.folder for one in made} == {"clips"}
    assert {one.short_clips for one in made} == {"skip"}
    assert {(one.width, one.height) for one in made} == {(512, 304)}


def test_frames_are_cut_to_what_wan_takes():
    imported = video(frames="[80]")
    assert imported.recipe.dataset[0].num_frames == 77
    assert outcome(imported, "target_frames", dataset=0)[0] == "changed"


@pytest.mark.parametrize(
    ("extraction", "more", "expected"),
    [
        ("chunk", "", {"frame_sampling": "chunk"}),
        ("slide", "frame_stride = 8", {"frame_sampling": "slide", "slide_stride": 8}),
        ("uniform", "frame_sample = 3", {"frame_sampling": "uniform", "windows_per_clip": 3}),
        ("uniform", "", {"frame_sampling": "head"}),
        ("full", "max_frames = 45", {"frame_sampling": "full"}),
    ],
)
def test_frame_extraction(extraction, more, expected):
    (made,) = video(frames="[33]", extraction=extraction, more=more).recipe.dataset
    assert {name: getattr(made, name) for name in expected} == expected


def test_a_limit_of_whole_clips_is_told_also_where_it_is_not_given():
    told = line(video(frames="[33]", extraction="full"), "frame_extraction", dataset=0).answer
    assert told.outcome == "changed"
    assert "129 frames of a longer clip" in told.why
    given = video(frames="[33]", extraction="full", more="max_frames = 45")
    assert outcome(given, "frame_extraction", dataset=0)[0] == "mapped"
    assert outcome(given, "max_frames", dataset=0)[0] == "not supported"


def test_stride_without_slide_is_not_needed():
    assert outcome(video(frames="[33]", more="frame_stride = 8"), "frame_stride")[0] == "not needed"


def test_clips_are_always_in_buckets():
    imported = video(frames="[33]", more="enable_bucket = false")
    assert imported.recipe.dataset[0].aspect_buckets is True
    assert outcome(imported, "enable_bucket", dataset=0)[0] == "changed"


def test_network_args_and_optimizer_args():
    imported = one("--network_args loraplus_lr_ratio=4 --optimizer_args betas=(0.9,0.99) eps=1e-6 weight_decay=0.2")
    optimizer = imported.recipe.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.99, 1e-6, 0.2)
    assert line(imported, "network_args.loraplus_lr_ratio").given.value == 4


def test_variables_are_left_and_told():
    imported = bring(MUSUBI_COMMANDS.replace("/models/wan_2.1_vae", "$MODELS/wan_2.1_vae"))
    assert imported.recipe.models.vae == "$MODELS/wan_2.1_vae.safetensors"
    assert any("models.vae: it holds a variable of your script" in one for one in imported.to_fill)


def test_a_variable_in_the_place_of_a_number_is_told():
    imported = one("--network_dim $DIM --learning_rate 1e-4")
    assert outcome(imported, "network_dim") == ("not supported", {})


def test_windows_batch_file():
    text = (
        "@echo off\r\nset X=1\r\naccelerate launch --mixed_precision bf16 src\\musubi_tuner\\wan_train_network.py ^\r\n"
        ' --task t2v-1.3B --dit C:\\models\\new\\wan.safetensors ^\r\n --output_dir "D:\\my loras" --network_dim 8\r\n'
    )
    recipe = bring(text, name="train.bat").recipe
    assert recipe.models.single == "C:\\models\\new\\wan.safetensors"
    assert (recipe.lora.folder, recipe.adapter.rank) == ("D:\\my loras", 8)


def test_options_in_a_file():
    text = (
        'network_dim = 8\ntask = "t2v-1.3B"\ndit = \'C:\\m\\wan.safetensors\'\noptimizer_args = ["weight_decay=0.3"]\n'
    )
    imported = import_files({"options.toml": text, "dataset.toml": MUSUBI_DATASET})
    assert (imported.recipe.adapter.rank, imported.recipe.optimizer.weight_decay) == (8, 0.3)
    assert imported.recipe.models.single == "C:\\m\\wan.safetensors"


def test_a_window_of_a_single_model_is_told():
    assert outcome(one("--min_timestep 200 --max_timestep 1000"), "min_timestep") == ("not supported", {})


def test_shift_counts_with_its_sampling_alone():
    assert outcome(one("--timestep_sampling sigmoid --discrete_flow_shift 5"), "discrete_flow_shift")[0] == "not needed"


def test_other_tasks_are_refused():
    with pytest.raises(ConfigError, match="--task is t2v-14B-FC"):
        one("", task="t2v-14B-FC")


def test_a_list_of_files_names_its_folder():
    dataset = '[[datasets]]\nimage_jsonl_file = "/data/list.jsonl"\ncache_directory = "c"\n'
    lines = '{"image_path": "/data/a.jpg", "caption": "a"}\n{"image_path": "/data/b.jpg", "caption": "b"}\n'
    imported = import_files({"train.sh": MUSUBI_COMMANDS, "dataset.toml": dataset, "list.jsonl": lines})
    assert imported.recipe.dataset[0].folder == "/data"


def test_a_dataset_alone_says_what_is_missing():
    imported = bring(commands="")
    assert imported.recipe.dataset[0].folder == "/data/pictures"
    assert any("bring the command line too" in note for note in imported.notes)


def kind(module, flags=""):
    start = "python wan_train_network.py --task t2v-14B --dit /m/wan2.1_t2v_14B_fp16.safetensors"
    return bring(f"{start} --network_module {module} {flags}", MUSUBI_DATASET)


@pytest.mark.parametrize(
    ("module", "flags", "expected"),
    [
        (
            "networks.lora_wan",
            "--network_args rank_dropout=0.1 module_dropout=0.2",
            {"rank_dropout": 0.1, "module_dropout": 0.2},
        ),
        ("networks.loha", "--network_dim 8 --network_dropout 0.1", {"kind": "loha", "rank": 8, "dropout": 0.0}),
        ("networks.lokr", "--network_args factor=8", {"kind": "lokr", "lokr_factor": 8}),
        ("networks.lokr", "--network_args factor=-1", {"kind": "lokr", "lokr_factor": 0}),
        ("lycoris.kohya", "--network_args algo=lokr factor=4 full_matrix=True", {"kind": "lokr", "lokr_full": True}),
        ("lycoris.kohya", "--network_args algo=locon dora_wd=True", {"kind": "dora"}),
        ("lycoris.kohya", "--network_args algo=diag-oft", {"kind": "oft"}),
        ("networks.lora_wan", "--network_weights /l/a.safetensors", {"start_from": "/l/a.safetensors"}),
        (
            "networks.lora_wan",
            "--base_weights /l/b.safetensors --base_weights_multiplier 0.8",
            {"merge_into_base": "/l/b.safetensors", "merge_strength": 0.8},
        ),
    ],
    ids=str,
)
def test_networks(module, flags, expected):
    adapter = kind(module, flags).recipe.adapter
    assert {name: getattr(adapter, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("module", "ratio", "norm"),
    [("networks.lora_wan", 4.0, 1.0), ("networks.loha", 1.0, 0.0), ("networks.lokr", 1.0, 0.0)],
)
def test_what_is_for_loras_alone_there_is_left_out_with_others(module, ratio, norm):
    """Here it would be refused with them, before the training."""
    imported = kind(module, "--network_args loraplus_lr_ratio=4 --scale_weight_norms 1")
    assert (imported.recipe.optimizer.lora_plus, imported.recipe.regularizers.max_weight_norm) == (ratio, norm)
    is_lora = module == "networks.lora_wan"
    for name in ("network_args.loraplus_lr_ratio", "scale_weight_norms"):
        assert outcome(imported, name)[0] == ("mapped" if is_lora else "not needed")


def test_patterns_leave_out_what_they_leave_out_there():
    flags = (
        """--network_args "exclude_patterns=[r'.*ffn.*', r'blocks.0.self_attn.q']" "include_patterns=[r'.*ffn.2']" """
    )
    imported = kind("networks.lora_wan", flags)
    paths = [f"blocks.{index}.{leaf}" for index in range(12) for leaf in LEAVES]
    excluded = [re.compile(".*ffn.*"), re.compile("blocks.0.self_attn.q")]
    wanted = {
        path for path in paths
        if not any(each.fullmatch(path) for each in excluded) or re.fullmatch(".*ffn.2", path)
    }  # fmt: skip
    assert set(places(imported.recipe.adapter, paths)) == wanted
    assert "blocks.0.ffn.2" in wanted
    assert "blocks.0.ffn.0" not in wanted
    assert outcome(imported, "network_args.include_patterns")[0] == "not needed"


def test_several_loras_for_the_base_are_too_many():
    imported = kind("networks.lora_wan", "--base_weights /l/a.safetensors /l/b.safetensors")
    assert outcome(imported, "base_weights")[0] == "not supported"
    assert imported.recipe.adapter.merge_into_base == ""
    assert outcome(kind("networks.lora_wan", "--dim_from_weights"), "dim_from_weights")[0] == "not needed"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", (100, 3)),
        (" --save_last_n_epochs 4", (100, 4)),
        (" --save_last_n_epochs 0", (100, 1)),
    ],
)
def test_checkpoints_by_epochs(options, expected):
    recipe = bring(MUSUBI_COMMANDS.replace("--save_every_n_epochs 100", f"--save_every_n_epochs 100{options}")).recipe
    settings = recipe.settings("high")
    assert (settings.saving.every_epochs, settings.loop.keep_last) == expected
