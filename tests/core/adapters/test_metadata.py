import json

import pytest
import torch
from wan_train.core.adapters.formats import LoraModule, expert_of_metadata, read_lora, write_lora
from wan_train.core.adapters.metadata import (
    MAX_METADATA_BYTES,
    LoraDescription,
    TrainingFacts,
    base_model_name,
    lora_metadata,
)
from wan_train.core.errors import ConfigError
from wan_train.core.wan.config import WanConfig

TRAINING = TrainingFacts(
    learning_rate=1e-4,
    optimizer="adamw",
    lr_scheduler="cosine",
    steps=1500,
    max_steps=2000,
    seed=5,
    tag_frequency={"ohwx person walks": 12},
    dataset_name="clips",
    started_at=1700000000.0,
)


def describe(**changes) -> LoraDescription:
    values = {"name": "ohwx_high_noise", "base_model": "wan2.2-t2v-a14b", "rank": 16, "alpha": 8.0} | changes
    return LoraDescription(date="2026-01-31T12:00:00Z", **values)


def test_full_description_fills_every_key():
    metadata = lora_metadata(
        describe(
            title="Ohwx",
            author="Ann",
            description="A person.",
            license="apache-2.0",
            trigger_phrase="ohwx person",
            tags=("character", "person"),
            merged_from=("a", "b"),
            resolution=(832, 480),
            timestep_range=(875, 1000),
            training=TRAINING,
            job={"schema": 1, "caf\u00e9": [1.5]},
            workflow={"nodes": []},
            prompt={"1": {"class_type": "KSampler"}},
        )
    )
    assert metadata == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "wan2.2-t2v-a14b/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.2",
        "modelspec.title": "Ohwx",
        "modelspec.date": "2026-01-31T12:00:00Z",
        "modelspec.author": "Ann",
        "modelspec.description": "A person.",
        "modelspec.license": "apache-2.0",
        "modelspec.trigger_phrase": "ohwx person",
        "modelspec.tags": "character,person",
        "modelspec.merged_from": "a,b",
        "modelspec.resolution": "832x480",
        "modelspec.timestep_range": "875,1000",
        "ss_output_name": "ohwx_high_noise",
        "ss_base_model_version": "wan2.2-t2v-a14b",
        "ss_network_module": "networks.lora_wan",
        "ss_network_dim": "16",
        "ss_network_alpha": "8",
        "ss_network_dropout": "0.0",
        "ss_learning_rate": "0.0001",
        "ss_optimizer": "adamw",
        "ss_lr_scheduler": "cosine",
        "ss_steps": "1500",
        "ss_max_train_steps": "2000",
        "ss_seed": "5",
        "ss_batch_size_per_device": "1",
        "ss_gradient_accumulation_steps": "1",
        "ss_num_train_items": "0",
        "ss_training_started_at": "1700000000.0",
        "ss_tag_frequency": '{"clips":{"ohwx person walks":12}}',
        "wantrain.job": '{"schema":1,"caf\u00e9":[1.5]}',
        "workflow": '{"nodes":[]}',
        "prompt": '{"1":{"class_type":"KSampler"}}',
    }
    assert expert_of_metadata(metadata) == "high"


def test_what_is_not_known_is_absent():
    metadata = lora_metadata(describe(base_model="wan2.1-t2v-1.3b"))
    assert metadata["modelspec.title"] == "ohwx_high_noise"
    assert metadata["modelspec.implementation"] == "https://github.com/Wan-Video/Wan2.1"
    assert not {"workflow", "prompt", "wantrain.job", "ss_steps", "modelspec.author", "modelspec.tags"} & set(metadata)
    assert "None" not in metadata.values()


def test_the_longest_expendable_entries_go_first():
    long = {"x": "\u00e9" * (MAX_METADATA_BYTES // 4)}
    training = TrainingFacts(**{**TRAINING.__dict__, "tag_frequency": {"y" * (MAX_METADATA_BYTES // 2): 1}})
    metadata = lora_metadata(describe(training=training, job=long, workflow={"nodes": []}, prompt=long))
    assert metadata["wantrain.left_out"] == "ss_tag_frequency,prompt"
    assert not {"ss_tag_frequency", "prompt"} & set(metadata)
    assert json.loads(metadata["wantrain.job"]) == long
    assert json.loads(metadata["workflow"]) == {"nodes": []}
    assert len(json.dumps(metadata, ensure_ascii=False).encode()) <= MAX_METADATA_BYTES + 1000


def test_front_end_finds_workflow_and_prompt_in_the_header(tmp_path):
    """As getLatentMetadata of the front end does: 4 bytes of length, JSON from byte 8, `__metadata__`."""
    workflow = {"nodes": [{"id": 1, "title": 'quo"te \u4e2d'}], "version": 0.4}
    module = LoraModule(down=torch.ones(1, 2), up=torch.ones(2, 1), alpha=1.0)
    path = tmp_path / "x.safetensors"
    write_lora(path, {"blocks.0.ffn.0": module}, metadata=lora_metadata(describe(workflow=workflow, prompt={"1": {}})))
    blob = path.read_bytes()
    length = int.from_bytes(blob[:4], "little")
    assert 8 + length < 4 * 1024 * 1024
    metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["workflow"]) == workflow
    assert json.loads(metadata["prompt"]) == {"1": {}}
    assert read_lora(path).architecture == "wan2.2-t2v-a14b"


@pytest.mark.parametrize(
    ("config", "is_expert", "name"),
    [
        (WanConfig(dim=1536), False, "wan2.1-t2v-1.3b"),
        (WanConfig(), False, "wan2.1-t2v-14b"),
        (WanConfig(), True, "wan2.2-t2v-a14b"),
        (WanConfig(variant="i2v", in_dim=36), True, "wan2.2-i2v-a14b"),
        (WanConfig(variant="i2v", in_dim=36), False, "wan2.2-i2v-a14b"),
        (WanConfig(variant="i2v", in_dim=36, image_dim=1280), False, "wan2.1-i2v-14b"),
        (WanConfig(variant="flf2v", in_dim=36, image_dim=1280, image_positions=514), False, "wan2.1-flf2v-14b"),
        (WanConfig(variant="ti2v", dim=3072, in_dim=48, out_dim=48), False, "wan2.2-ti2v-5b"),
        (WanConfig(dim=48), False, "wan2.1-t2v-dim48"),
    ],
)
def test_base_model_names(config, is_expert, name):
    assert base_model_name(config, is_expert=is_expert) == name
    assert lora_metadata(describe(base_model=name))["modelspec.architecture"] == f"{name}/lora"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": "Wan 2.2"}, "base_model is 'Wan 2.2'; it must look like"),
        ({"timestep_range": (875, 875)}, "timestep_range is 875,875"),
        ({"timestep_range": (0, 1001)}, "timestep_range is 0,1001"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        describe(**changes)


def test_bad_date_is_refused():
    with pytest.raises(ConfigError, match="date is 'yesterday'"):
        LoraDescription(name="x", base_model="wan2.2-t2v-a14b", rank=1, alpha=1.0, date="yesterday")
