"""The host's CLIP vision model behind our door: what its own node gives, for Wan 2.1 image-to-video."""

import pytest
import torch
from wan_train.core.facts import CLIP_DIM, CLIP_TOKENS

SIZES = {
    "hidden_size": CLIP_DIM, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 8, "num_channels": 3, "hidden_act": "gelu",
    "model_type": "clip_vision_model", "layer_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture(scope="module")
def clip_vision(comfy):
    """A random CLIP vision model of ViT-H/14's outer sizes."""
    import comfy.clip_vision

    torch.manual_seed(0)
    model = comfy.clip_vision.ClipVisionModel(SIZES)
    for parameter in model.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def test_features_are_those_of_the_hosts_own_node(host_side, clip_vision):
    from nodes import CLIPVisionEncode

    image = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ours = host_side.HostVisionEncoder(clip_vision).encode(image)
    (theirs,) = CLIPVisionEncode().encode(clip_vision, image[None].float() / 255, "none")
    assert ours.shape == (CLIP_TOKENS, CLIP_DIM)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs.penultimate_hidden_states[0].float())
    (cropped,) = CLIPVisionEncode().encode(clip_vision, image[None].float() / 255, "center")
    assert not torch.allclose(ours, cropped.penultimate_hidden_states[0].float(), atol=1e-3)


def test_the_identity_knows_the_weights(host_side, clip_vision):
    before = host_side.HostVisionEncoder(clip_vision).identity
    assert host_side.HostVisionEncoder(clip_vision).identity == before
    weight = next(clip_vision.model.parameters())
    with torch.no_grad():
        weight.add_(1)
    try:
        assert host_side.HostVisionEncoder(clip_vision).identity != before
    finally:
        with torch.no_grad():
            weight.sub_(1)
