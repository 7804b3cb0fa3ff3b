import pytest
from wan_train.core.wan.keys import find_prefix, is_diffusers, is_unused, to_official


@pytest.mark.parametrize(
    ("diffusers", "official"),
    [
        ("condition_embedder.time_embedder.linear_2.bias", "time_embedding.2.bias"),
        ("condition_embedder.time_proj.weight", "time_projection.1.weight"),
        ("condition_embedder.text_embedder.linear_1.weight", "text_embedding.0.weight"),
        ("condition_embedder.image_embedder.ff.net.0.proj.weight", "img_emb.proj.1.weight"),
        ("scale_shift_table", "head.modulation"),
        ("proj_out.weight", "head.head.weight"),
        ("blocks.12.scale_shift_table", "blocks.12.modulation"),
        ("blocks.12.attn1.to_out.0.weight", "blocks.12.self_attn.o.weight"),
        ("blocks.12.attn1.norm_q.weight", "blocks.12.self_attn.norm_q.weight"),
        ("blocks.12.attn2.add_k_proj.bias", "blocks.12.cross_attn.k_img.bias"),
        ("blocks.12.attn2.norm_added_k.weight", "blocks.12.cross_attn.norm_k_img.weight"),
        ("condition_embedder.image_embedder.norm2.bias", "img_emb.proj.4.bias"),
        ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
        ("blocks.12.norm2.weight", "blocks.12.norm3.weight"),
        ("blocks.12.ffn.net.0.proj", "blocks.12.ffn.0"),
        ("blocks.12.ffn.net.2.weight_scale", "blocks.12.ffn.2.weight_scale"),
    ],
)
def test_diffusers_names_become_official(diffusers, official):
    assert to_official(diffusers) == official


def test_official_names_stay(tiny):
    names = list(tiny.weights(tiny.small))
    assert [to_official(name) for name in names] == names
    assert not is_diffusers(names)


def test_left_over_norm_is_unused_and_its_neighbours_are_not():
    assert is_unused("blocks.12.attn2.norm_added_q.weight")
    assert not any(is_unused(f"blocks.12.attn2.{name}.weight") for name in ("norm_added_k", "norm_q", "add_k_proj"))


def test_prefix_is_found_only_in_front_of_a_wan_transformer():
    assert find_prefix(["vae.x", "model.diffusion_model.blocks.0.modulation"]) == "model.diffusion_model."
    assert find_prefix(["net.blocks.0.modulation"]) == "net."
    assert find_prefix(["model.diffusion_model.input_blocks.0.0.weight"]) == ""
    assert find_prefix(["blocks.0.modulation"]) == ""
