"""Which expert a file's name means."""

import pytest
from wan_train.core.adapters.merge import check_pair
from wan_train.core.adapters.named_expert import expert_of_name
from wan_train.tests.core.adapters.test_merge import make_file


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("low-poly.safetensors", None),
        ("low_poly_high_noise.safetensors", "high"),
        ("lowpoly_style-low.safetensors", "low"),
        ("high-heels_low_noise.safetensors", "low"),
        ("High Heels-high.safetensors", "high"),
        ("high_key_low.safetensors", "low"),
        ("low_vram_high.safetensors", "high"),
        ("wan22_low_fire.safetensors", "low"),
    ],
)
def test_expert_by_name(name, expert):
    assert expert_of_name(name) == expert


def test_a_high_lora_named_low_poly_is_not_said_to_be_low():
    high = make_file(0, name="low-poly.safetensors", metadata={"modelspec.timestep_range": "875,1000"})
    low = make_file(1, name="low-poly_low_noise.safetensors", metadata={"modelspec.timestep_range": "0,875"})
    assert check_pair(high, low) == []
