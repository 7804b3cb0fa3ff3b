"""The nano family: a miniature of Wan 2.2 that comes with the pack, so that a graph can be tried without a download."""

from pathlib import Path

from comfy_api.latest import io

from ..core.errors import ConfigError
from . import host
from .host import folders
from .model_nodes import CATEGORY

HIGH, LOW = (f"wan_nano_t2v_{stage}_noise.safetensors" for stage in ("high", "low"))
VAE, TEXT_ENCODER = "wan_nano_vae.safetensors", "wan_nano_umt5.safetensors"


class WanNanoFamily(io.ComfyNode):
    """Loads the four models of the nano family, as the host's own types."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanNanoFamily",
            display_name="Wan Nano Family",
            category=CATEGORY,
            description="A miniature of Wan 2.2 that comes with the pack: two text-to-video experts, text encoder and VAE."
            " It knows a small world of coloured shapes in motion, at 64 x 64 pixels and 17 frames, and trains on a CPU in"
            " minutes: for trying a graph out before the real models.",
            search_aliases=["wan demo models", "tiny wan", "miniature wan"],
            inputs=[],
            outputs=[
                io.Model.Output("high", display_name="high", tooltip="The high noise expert."),
                io.Model.Output("low", display_name="low", tooltip="The low noise expert."),
                io.Clip.Output("clip", display_name="clip", tooltip="The umT5 text encoder."),
                io.Vae.Output("vae", display_name="vae", tooltip="The Wan 2.1 VAE."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        high, low = (host.load_diffusion_model(nano_file("diffusion_models", name)) for name in (HIGH, LOW))
        clip = host.load_umt5(nano_file("text_encoders", TEXT_ENCODER))
        return io.NodeOutput(high, low, clip, host.load_vae(nano_file("vae", VAE)))


def nano_file(kind: str, name: str) -> Path:
    """The path of one of the family's files; ConfigError if it is not there."""
    path = folders.NANO / kind / name
    if not path.is_file():
        raise ConfigError(f"{path} is missing: install ComfyUI-WanTrain again, its folder 'nano' is not complete.")
    return path


NODES = [WanNanoFamily]
