"""Which model a name means."""

import pytest
from wan_train.core.cli.catalog import SETS
from wan_train.core.importers.families import FAMILIES, family_of, stage_of

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


def test_the_files_are_those_that_can_be_downloaded():
    known = {file.name for files in SETS.values() for file in files}
    named = {name for family in FAMILIES.values() for name in family.files.values()}
    assert named - known == {"wan2.1_i2v_720p_14B_fp16.safetensors"}
    assert {family.vae for family in FAMILIES.values()} <= known
