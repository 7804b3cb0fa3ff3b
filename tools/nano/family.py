"""Where the nano family lies and how large its models are."""

from dataclasses import dataclass
from pathlib import Path

from ..miniature import DiTSize, TextSize

ROOT = Path(__file__).resolve().parent.parent.parent / "nano"
STAGES = ("high", "low")

VAE_DIM = 12
TEXT = TextSize(d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2)
T2V = DiTSize(dim=128, ffn_dim=384, num_heads=4, num_layers=6, text_dim=TEXT.d_model)


@dataclass(frozen=True)
class Files:
    """The files of the family below one folder, laid out as ComfyUI's models folder is."""

    root: Path = ROOT

    def dit(self, stage: str) -> Path:
        """The expert `high` or `low`."""
        return self.root / "diffusion_models" / f"wan_nano_t2v_{stage}_noise.safetensors"

    @property
    def vae(self) -> Path:
        """The VAE."""
        return self.root / "vae" / "wan_nano_vae.safetensors"

    @property
    def text_encoder(self) -> Path:
        """The umT5 encoder, tokenizer inside."""
        return self.root / "text_encoders" / "wan_nano_umt5.safetensors"
