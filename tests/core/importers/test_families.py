"""Which model a name means."""

import pytest
from wan_train.core.cli.catalog import SETS
from wan_train.core.importers.families import FAMILIES, families_like, family_of, stage_of
from wan_train.core.recipe.presets.fits import MODELS
from wan_train.core.wan.config import WanConfig

NAMES = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "t2v-1.3b",
    "Wan-AI/Wan2.1-T2V-14B": "t2v-14b",
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": "i2v-14b-480p",
    "/models/wan2.1_i2v_720p_14B_fp16.safetensors": "i2v-14b-720p",
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": "flf2v-14b",
    "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16": "t2v-a14b",
    "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors": "i2v-a14b",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "ti2v-5b",
    "Wan-AI/Wan2.1-VACE-14B-diffusers": "",
    "black-forest-labs/FLUX.1-dev": "",
    "model.safetensors": "",
}


@pytest.mark.parametrize(("name", "family"), NAMES.items())
def test_names(name, family):
    assert family_of(name) == family


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("/high/wan2.2_t2v_low_noise_14B.safetensors", "low"),
        ("C:\\m\\Wan2.2_HighNoise.safetensors", "high"),
        ("/m/high_noise_model/model.safetensors", "high"),
        ("/m/wan2.1.safetensors", None),
    ],
)
def test_stages(path, stage):
    assert stage_of(path) == stage


T2V_14B, I2V_A14B, T2V_1_3B = (MODELS[name] for name in ("t2v-a14b", "i2v-a14b", "t2v-1.3b"))
TI2V_5B = WanConfig(variant="ti2v", dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48)
I2V_14B = WanConfig(variant="i2v", in_dim=36, image_dim=1280)
I2V_BOTH = ("i2v-14b-480p", "i2v-14b-720p")


@pytest.mark.parametrize(
    ("config", "name", "families"),
    [
        (T2V_14B, "wan2.2_t2v_high_noise_14B_fp16.safetensors", ("t2v-a14b",)),
        (T2V_14B, "wan2.1_t2v_14B_fp16.safetensors", ("t2v-14b",)),
        (T2V_14B, "mine_high_noise.safetensors", ("t2v-a14b",)),
        (T2V_14B, "mine.safetensors", ("t2v-a14b", "t2v-14b")),
        (I2V_A14B, "mine.safetensors", ("i2v-a14b",)),
        (I2V_14B, "mine.safetensors", I2V_BOTH),
        (T2V_1_3B, "wan2.2_t2v_high_noise_14B_fp16.safetensors", ("t2v-1.3b",)),  # it was renamed: its sizes tell
        (TI2V_5B, "mine.safetensors", ("ti2v-5b",)),
        (WanConfig(dim=256, num_heads=2, num_layers=4), "wan_nano_t2v_high_noise.safetensors", ()),
        (None, "wan2.1_t2v_1.3B_fp16.safetensors", ("t2v-1.3b",)),  # it is not there
        (None, "mine.safetensors", ()),
    ],
)
def test_models_are_told_by_their_sizes_then_by_their_names(config, name, families):
    assert families_like(config, name) == families


def test_the_files_are_those_that_can_be_downloaded():
    known = {file.name for files in SETS.values() for file in files}
    named = {name for family in FAMILIES.values() for name in family.files.values()}
    assert named - known == {"wan2.1_i2v_720p_14B_fp16.safetensors"}
    assert {family.vae for family in FAMILIES.values()} <= known
