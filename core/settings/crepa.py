"""Aligning the model with what an image encoder sees in the frames around."""

from dataclasses import dataclass
from typing import Literal

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class CrepaOptions(Options, group="crepa"):
    """Cross-frame representation alignment (CREPA, arXiv:2506.09229): a block's hidden states follow DINOv2's features."""

    weight: float = option(
        0.0,
        help="CREPA: how strongly the model's features of a frame are aligned with DINOv2's of it and its neighbours.",
        more="Needs crepa_encoder and a VAE. 0.5 is usual.",
        page="The paper (arXiv:2506.09229) reports steadier subjects and better FVD for LoRAs of CogVideoX and Hunyuan; nothing"
        " has been published for Wan. The features are made once at the start of a run and kept beside the cached"
        " latents, up to 90 MB a clip of 81 frames. A small projection is trained with the LoRA and kept in checkpoints; the"
        " LoRA's file does not hold it.",
        zero="off",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "crepa_weight", 189, most=1000.0, step=0.05, round=0.001),
        simpletuner="crepa_lambda",
    )
    encoder: str = option(
        "",
        help="Path of a folder with a DINOv2 model from Hugging Face, such as facebook/dinov2-giant.",
        more="dinov2-small is faster, and smaller on disk.",
        born=2,
        at_birth="",
        in_key=False,  # what it holds is
        widget=Widget(TRAIN, "crepa_encoder", 190),
        not_with={"weight": (0.0,)},
    )
    vae: str = option(
        "",
        help="Path of the VAE file that the latents were cached with. It decodes the frames for DINOv2.",
        more="In a recipe, empty: the VAE of the recipe.",
        born=2,
        at_birth="",
        in_key=False,
        widget=Widget(TRAIN, "crepa_vae", 191),
        not_with={"weight": (0.0,)},
    )
    block: int = option(
        8,
        help="The block after which the features (hidden states) are taken, counted from 0.",
        most=1000,
        born=2,
        at_birth=8,
        widget=Widget(TRAIN, "crepa_block", 192, most=100),
        not_with={"weight": (0.0,)},
        simpletuner="crepa_block_index",
    )
    distance: int = option(
        1,
        help="Distance in latent frames of the neighbours that a frame is aligned with, too.",
        zero="with itself alone",
        most=1000,
        born=2,
        at_birth=1,
        widget=Widget(TRAIN, "crepa_distance", 193, most=20),
        not_with={"weight": (0.0,)},
        simpletuner="crepa_adjacent_distance",
    )
    tau: float = option(
        1.0,
        help="How much a neighbour at distance d counts: exp(-d / tau). Larger: distant ones count more.",
        above=0.0,
        most=1000.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "crepa_tau", 194, least=0.01, most=100.0, step=0.1),
        not_with={"weight": (0.0,)},
        simpletuner="crepa_adjacent_tau",
    )
    neighbours: Literal["exact", "all"] = option(
        "exact",
        help="exact: only the neighbours at crepa_distance. all: the nearer ones, too.",
        born=2,
        at_birth="exact",
        widget=Widget(TRAIN, "crepa_neighbours", 195),
        not_with={"weight": (0.0,)},
    )
    image_size: int = option(
        518,
        help="The side of the square that DINOv2 looks at.",
        more="A multiple of 14; 224 takes a fifth of the time and the disk.",
        least=14,
        most=4096,
        unit="pixels",
        born=2,
        at_birth=518,
        widget=Widget(TRAIN, "crepa_image_size", 196, most=1036, step=14),
        not_with={"weight": (0.0,)},
        simpletuner="crepa_encoder_image_size",
    )
