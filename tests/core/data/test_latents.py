import pytest
import torch
from wan_train.core.data.latents import normalise_latents, signed_pixels


@pytest.mark.parametrize(("name", "channels"), [("wan2.1", 16), ("wan2.2", 48)])
def test_latents_are_what_the_hosts_sampler_makes_of_them(comfy, name, channels):
    """The host normalises when it samples: what is trained on must be the same numbers."""
    import comfy.latent_formats

    formats = {"wan2.1": comfy.latent_formats.Wan21, "wan2.2": comfy.latent_formats.Wan22}
    raw = torch.randn(1, channels, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalise_latents(raw[0], name), formats[name]().process_in(raw)[0])


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_have_the_same_bits_on_every_device(device, dtype):
    """Every level, and values between, against the plain arithmetic on the CPU."""
    levels = torch.arange(256, dtype=torch.uint8).view(2, 4, 32, 1).expand(-1, -1, -1, 3)
    expected = (levels.float() / 255.0 * 2.0 - 1.0).to(dtype)
    assert torch.equal(signed_pixels(levels, torch.device(device), dtype).cpu(), expected)
    between = torch.rand(2, 4, 8, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(signed_pixels(between, torch.device(device), dtype).cpu(), (between * 2.0 - 1.0).to(dtype))
