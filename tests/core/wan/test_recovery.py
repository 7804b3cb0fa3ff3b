"""Files of accuracy recovery adapters, in the names that AI-Toolkit writes."""

import pytest
import torch
from wan_train.core.errors import ModelFileError
from wan_train.core.wan.recovery import read_recovery_adapter


def factors(value):
    return torch.full((2, 6), value), torch.full((4, 2), value + 0.5)


def write(save, layers):
    """`layers`: name as in the file -> value."""
    tensors = {}
    for name, value in layers.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = factors(value)
    return save(tensors, "ara.safetensors")


def test_each_expert_gets_its_half(save):
    path = write(
        save,
        {
            "diffusion_model.transformer_1.blocks.0.attn1.to_q": 1.0,
            "diffusion_model.transformer_1.blocks.11.attn2.to_out.0": 2.0,
            "diffusion_model.transformer_2.blocks.0.attn1.to_q": 3.0,
            "diffusion_model.transformer_2.blocks.0.ffn.net.0.proj": 4.0,
        },
    )
    high, low = read_recovery_adapter(path, "high"), read_recovery_adapter(path, "low")
    assert set(high) == {"blocks.0.self_attn.q", "blocks.11.cross_attn.o"}
    assert set(low) == {"blocks.0.self_attn.q", "blocks.0.ffn.0"}
    assert all(map(torch.equal, high["blocks.0.self_attn.q"], factors(1.0)))
    assert all(map(torch.equal, low["blocks.0.self_attn.q"], factors(3.0)))
    with pytest.raises(ModelFileError, match=r"ara.safetensors' holds .* high and the low .*: say which expert"):
        read_recovery_adapter(path, None)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
def test_a_file_for_one_model_has_official_or_diffusers_names(save, prefix):
    path = write(save, {prefix + "blocks.3.self_attn.v": 1.0, prefix + "blocks.3.attn2.to_k": 2.0})
    for expert in (None, "low"):
        assert set(read_recovery_adapter(path, expert)) == {"blocks.3.self_attn.v", "blocks.3.cross_attn.k"}


def test_other_files_are_refused(save):
    with pytest.raises(ModelFileError, match=r"other.safetensors' is no accuracy recovery adapter for Wan: it has no"):
        read_recovery_adapter(save({"blocks.0.ffn.0.weight": torch.ones(2)}, "other.safetensors"), None)
    with pytest.raises(ModelFileError, match=r"has half of the factors of 'blocks.0.ffn.0'; download it again"):
        read_recovery_adapter(save({"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 2)}), None)
    with pytest.raises(ModelFileError, match=r"holds nothing for the low noise expert: choose the file for this"):
        read_recovery_adapter(write(save, {"transformer_1.blocks.0.ffn.0": 1.0}), "low")
    with pytest.raises(ModelFileError, match=r"gone.safetensors' cannot be read"):
        read_recovery_adapter(save({"a": torch.ones(1)}).with_name("gone.safetensors"), None)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (torch.ones(2, 6), torch.ones(4, 3)),
        (torch.ones(0, 6), torch.ones(4, 0)),
        (torch.ones(2), torch.ones(4, 2)),
        (torch.ones(2, 6, 1), torch.ones(4, 2)),
        (torch.ones(2, 6, dtype=torch.int32), torch.ones(4, 2)),
    ],
)
def test_factors_that_do_not_fit_together_are_told(save, down, up):
    path = save({"blocks.0.ffn.0.lora_A.weight": down, "blocks.0.ffn.0.lora_B.weight": up}, "ara.safetensors")
    with pytest.raises(
        ModelFileError, match=r"ara.safetensors' is damaged: the factors of 'blocks.0.ffn.0' do not fit"
    ):
        read_recovery_adapter(path, None)


def test_one_layer_under_two_names_is_told(save):
    path = write(save, {"diffusion_model.blocks.0.ffn.0": 1.0, "transformer.blocks.0.ffn.net.0.proj": 2.0})
    with pytest.raises(ModelFileError, match="under two names"):
        read_recovery_adapter(path, None)
