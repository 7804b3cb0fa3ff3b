"""docs/guides.md: what it names exists, and each of its rows says how."""

import json
import re
from pathlib import Path

import pytest
from wan_train.core.importers.declared import options_by_place
from wan_train.core.recipe.recipe import Recipe
from wan_train.tests.core.importers.given import import_files
from wan_train.tests.core.recipe.presets.guides import CONFIG, MUSUBI_FILES, SIMPLETUNER_FILES

PAGE = Path(__file__).parents[3] / "docs" / "guides.md"


def rows_of(text):
    """The cells of each row of its tables."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in re.sub(r"\| \|(?= )", "|  |", text).splitlines()
        if line.startswith("| ") and not line.startswith(("| The guide", "| Word"))
    ]
    return [row for row in rows if len(row) > 2]


ROWS = rows_of(PAGE.read_text(encoding="utf-8"))
HOW = ("works", "differs", "by itself", "not here")
COMMANDS = ("wantrain import", "wantrain run", "wantrain push", "wantrain caption", "wantrain preview")
# What the three guides have people write or set, by the names that stand there.
WRITTEN = {
    "musubi-tuner": """
        batch_size blocks_to_swap bucket_no_upscale cache_directory caption_extension dataset_config discrete_flow_shift
        enable_bucket fp8_base gradient_accumulation_steps gradient_checkpointing image_directory learning_rate lr_scheduler
        lr_scheduler_min_lr_ratio lr_scheduler_power max_data_loader_n_workers max_grad_norm max_timestep max_train_epochs
        metadata_author metadata_title min_timestep mixed_precision network_alpha network_dim network_module
        num_cpu_threads_per_process num_repeats optimizer_args optimizer_type output_dir output_name
        preserve_distribution_shape resolution save_every_n_epochs sdpa seed task timestep_sampling xformers
        run_wan_training.sh vast_provision.sh train_helper.py SillyCaption""",
    "AI-Toolkit": """
        Job Name, Output Directory, GPU ID, Trigger Word, Architecture, Name or Path, Low VRAM, Layer Offloading,
        4 bit with ARA, float8, Text Encoder, Stages to Train, Switch Every, Steps, Target Type, Linear Rank,
        Data Type, Save Every, Max Step Saves to Keep, Batch Size, Gradient Accumulation, Optimizer, Learning Rate,
        Loss Type, Timestep Type Linear, Sigmoid, Timestep Type Shift, Timestep Type Weighted, Timestep Bias,
        Use EMA, Unload TE, Cache Text Embeddings, Differential Output Preservation, multiplier and class,
        Do Differential Guidance, Scale, Target Dataset, LoRA Weight, Default Caption, Caption Dropout,
        Cache Latents, Is Regularization, Flip X, Flip Y, Resolutions, Num Frames, Sample Every, Guidance Scale,
        negative prompt, training queue, Run LoRA, a Mac""",
    "SimpleTuner": """
        aspect_bucket_rounding attention_mechanism base_model_default_dtype base_model_precision bucket_strategy cache_dir
        cache_dir_conditioning_image_embeds cache_dir_vae caption_dropout_probability caption_strategy
        checkpoint_step_interval checkpoints_total_limit compress_disk_cache conditioning_image_embeds crop
        data_backend_config dataset_type delete_problematic_images disable_benchmark disable_bucket_pruning disabled
        ema_update_interval ema_validation enable_chunked_feed_forward enable_group_offload enable_model_cpu_offload
        end_layer_idx feed_forward_chunk_size flow_schedule_auto_shift flow_schedule_shift frame_interval grad_clip_method
        gradient_accumulation_steps gradient_checkpointing group_offload_blocks_per_group group_offload_to_disk_path
        group_offload_type group_offload_use_stream hub_model_id ignore_final_epochs instance_data_dir learning_rate
        lora_rank lora_type lr_scheduler lr_warmup_steps lycoris_config max_frames max_grad_norm max_train_steps
        maximum_image_size metadata_backend min_frames minimum_image_size mixed_precision model_family model_flavour
        model_type num_frames num_train_epochs offload_during_startup optimizer output_dir pretrained_model_name_or_path
        pretrained_t5_model_name_or_path pretrained_transformer_model_name_or_path pretrained_transformer_subfolder
        pretrained_vae_model_name_or_path push_checkpoints_to_hub push_to_hub quantize_via repeats report_to resolution
        resolution_type resume_from_checkpoint routes seed selection_ratio start_layer_idx target_downsample_size
        text_encoder_1_precision text_encoder_2_precision tracker_project_name tracker_run_name train_batch_size
        tread_config type use_ema user_prompt_library vae_batch_size validation_guidance validation_guidance_skip_layers
        validation_guidance_skip_layers_start validation_guidance_skip_layers_stop validation_negative_prompt
        validation_num_inference_steps validation_num_video_frames validation_preview validation_preview_steps
        validation_prompt validation_prompt_library validation_resolution validation_seed validation_step_interval
        wan_force_2_1_time_embedding wan_validation_load_other_stage webhook_config write_batch_size crepa_enabled
        scheduled_sampling_max_step_offset HF_ENDPOINT ROCm Apple NF4 INT4 DeepSpeed CLIP masks""",
}


def test_there_are_rows():
    assert len(ROWS) > 100


def test_every_name_that_a_guide_has_people_write_has_its_row():
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(sections) == len(WRITTEN)
    for (guide, names), section in zip(WRITTEN.items(), sections, strict=True):
        assert section.startswith(guide)
        told = " ".join(line.split(" | ")[0] for line in section.splitlines() if line.startswith("| "))
        missing = [
            name
            for name in (names.split() if "," not in names else re.split(r",\s*", names.strip()))
            if not re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", told)
        ]
        assert missing == [], guide


# Rows whose word is of what the option stands for, where the import has another one of the value that the guide gives it.
OTHERWISE = {
    "attention_mechanism": "sageattention can't train: an attention that can is taken",
    "base_model_default_dtype": "bf16 is what there is without it", "mixed_precision": "as base_model_default_dtype",
    "compress_disk_cache": "the training is the same without it",
    "data_backend_config": "the file that it names is read",
    "lycoris_config": "lora_type is standard in the guide",
    "max_timestep": "one end of a window is the boundary, the other is not needed", "min_timestep": "as max_timestep",
    "metadata_title": "it is the name of the file in the guide",
    "minimum_image_size": "it is 0 in one file, and the side of a square in the other",
    "num_train_epochs": "max_train_steps says how long in the guide",
    "report_to": "an import turns no tracker on", "tracker_project_name": "as report_to", "tracker_run_name": "as report_to",
    "resolution_type": "resolution is read by it",
    "task": "the model's file says it, and the import reads it",
    "validation_prompt_library": "it is false in the guide",
}  # fmt: skip
OUTCOMES = {
    "works": {"mapped"}, "differs": {"changed", "mapped", "not needed"}, "by itself": {"not needed", "changed"},
    "not here": {"not supported"},
}  # fmt: skip


def guide_lines():
    """(guide, name, outcome) of every option of the files that the guides for musubi-tuner and SimpleTuner have."""
    more = {
        "crepa_enabled": True, "crepa_lambda": 0.5, "crepa_block_index": 8, "crepa_adjacent_distance": 1,
        "crepa_adjacent_tau": 1.0, "crepa_drop_vae_encoder": True, "scheduled_sampling_max_step_offset": 10,
        "enable_group_offload": True, "group_offload_type": "block_level", "group_offload_blocks_per_group": 1,
        "group_offload_use_stream": True, "group_offload_to_disk_path": "/x", "enable_chunked_feed_forward": True,
        "feed_forward_chunk_size": 2, "validation_preview": True, "base_model_default_dtype": "bf16",
        "text_encoder_1_precision": "no_change", "text_encoder_2_precision": "no_change",
        "wan_force_2_1_time_embedding": True, "pretrained_transformer_subfolder": "none",
    }  # fmt: skip
    config = json.dumps({**CONFIG, **more})
    for guide, files in (
        ("musubi-tuner", MUSUBI_FILES),
        ("SimpleTuner", {**SIMPLETUNER_FILES, "config.json": config}),
    ):
        for line in import_files(files).given:
            name = re.split(r"[\s.]", line.given.name.lstrip("-"))[-1].lstrip("-")
            yield guide, name, line.answer.outcome


def test_a_row_says_what_the_import_says():
    """Of options that stand in the first cell by their name: a word that the importer contradicts is no true word."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    words = {}
    for section in sections:
        guide = section.split(":")[0]
        for row in rows_of(section):
            for name in re.findall(r"`(?:--)?([a-z_0-9]+)`", row[0]):
                words.setdefault((guide, name), row[2])
    found = [(guide, name, words[guide, name], said) for guide, name, said in guide_lines() if (guide, name) in words]
    assert len({name for _, name, _, _ in found}) > 90
    other = [entry for entry in found if entry[3] not in OUTCOMES[entry[2]]]
    assert [entry for entry in other if entry[1] not in OTHERWISE] == []
    assert {entry[1] for entry in other} == OTHERWISE.keys()


def test_what_is_not_here_says_why():
    for row in ROWS:
        assert row[2] != "not here" or len(row[3].strip()) > 20, row[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_names_what_exists(row):
    known = {*options_by_place(), *Recipe.__dataclass_fields__, *COMMANDS}
    assert row[2] in HOW
    assert set(re.findall(r"`([^`]+)`", row[1])) <= known
    elsewhere = re.findall(r"`([a-z]+\.[a-z_]+)`", row[3] if len(row) > 3 else "")
    assert set(elsewhere) <= known
    assert row[1] if row[2] == "works" else True
    assert row[2] != "not here" or not row[1]


def test_values_it_names_are_choices():
    places = {"ara": "precision", "fp8": "precision", "shifted_uniform": "timesteps.sampling", "even": "dataset.frame_sampling",
              "auto_shift": "timesteps.sampling", "soft_l1": "loss.kind", "pseudo_huber": "loss.kind",
              "paged_lion8bit": "optimizer.name", "squeezed": "timesteps.window", "trigger": "dataset.caption_source",
              "sidecar": "dataset.caption_source", "weighted": "loss.weighting",
              "int4_svd": "precision", "nf4": "precision"}  # fmt: skip
    text = PAGE.read_text(encoding="utf-8")
    for value, place in places.items():
        assert f"`{value}`" in text
        assert value in map(str, options_by_place()[place].choices), (value, place)
