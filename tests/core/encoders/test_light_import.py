"""diffusers' VAE without what diffusers imports beside it, and nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).parents[3]
_START = """
import sys, torch
sys.path.insert(0, {pack!r})
import wantrain; wantrain.load_pack()
from wan_train.core.encoders.light_import import for_encoders, wan_vae_class
SIZES = dict(base_dim=8, z_dim=16, num_res_blocks=1, temperal_downsample=[False, True, True])
def encoded(kind):
    torch.manual_seed(0)
    vae = kind(**SIZES)
    torch.manual_seed(0)
    return vae.encode(torch.randn(1, 3, 5, 16, 16)).latent_dist.mode()
"""
LEFT_OUT = {"transformers", "peft", "accelerate", "bitsandbytes", "scipy", "sklearn", "torchvision", "torchaudio"}


def run(code: str) -> str:
    start = _START.format(pack=str(PACK))
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.grid(2, "processes that import everything anew")
def test_the_same_vae_and_whoever_imports_diffusers_afterwards_gets_it_whole():
    """Then it is used."""
    run(f"""
light = wan_vae_class()
assert not {LEFT_OUT!r} & set(sys.modules)
assert "diffusers" not in sys.modules
assert wan_vae_class() is light
first = encoded(light)
import diffusers
assert diffusers.AutoencoderKLWan is not light
assert torch.equal(first, encoded(diffusers.AutoencoderKLWan))
from diffusers.loaders import WanLoraLoaderMixin, peft
assert peft.is_peft_available()
wan_vae_class.cache_clear()
assert wan_vae_class() is diffusers.AutoencoderKLWan
""")


def test_one_that_does_not_do_without_them_is_imported_as_usual(tmp_path):
    package = tmp_path / "diffusers"
    package.mkdir()
    (package / "__init__.py").write_text("import scipy\nclass AutoencoderKLWan: ...\n")
    run(f"""
sys.path.insert(0, {str(tmp_path)!r})
assert wan_vae_class().__module__ == "diffusers"
assert "scipy" in sys.modules
""")


@pytest.mark.grid(2, "processes that import everything anew")
def test_text_and_vision_models_come_without_three_packages():
    run("""
with for_encoders():
    from transformers import CLIPVisionModel, UMT5EncoderModel
assert not {"scipy", "sklearn", "torchaudio"} & set(sys.modules)
import scipy
""")
