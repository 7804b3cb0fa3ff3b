import pytest
import torch
from wan_train.core.data.latents import normalise_latents


@pytest.mark.parametrize(("name", "channels"), [("wan2.1", 16), ("wan2.2", 48)])
def test_latents_are_what_the_hosts_sampler_makes_of_them(comfy, name, channels):
    """The host normalises when it samples: what is trained on must be the same numbers."""
    import comfy.latent_formats

    formats = {"wan2.1": comfy.latent_formats.Wan21, "wan2.2": comfy.latent_formats.Wan22}
    raw = torch.randn(1, channels, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalise_latents(raw[0], name), formats[name]().process_in(raw)[0])
