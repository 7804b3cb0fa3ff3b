"""Leaving tokens out of blocks."""

from dataclasses import dataclass

from ..routes import read_routes
from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class TreadOptions(Options, group="tread"):
    """Token routing: in training some of a video's tokens pass some blocks by, so that a step takes less time."""

    routes: str = option(
        "",
        help="TREAD: a share of a video's tokens skips some blocks, so that steps are faster. Such as 2 to -2: 0.5.",
        more="The first and the last block that they skip, counted from 0 (negative: from the end); then the share. Several"
        " routes have commas between. Empty: off. The held-out loss and previews use all tokens.",
        page="The paper (arXiv:2501.04765) trains image models from the start, faster and to better results. For"
        " LoRAs nothing has been published. SimpleTuner's authors report steps that are 20 to 40 % faster, a loss that"
        " jumps up at the start, and worse results with large shares. Which tokens are left out is drawn anew for each sample"
        " and step. On the nano bench (6 blocks, clips of 80 tokens, 160 steps, 3 seeds) `1 to -2: 0.5` came to 39 %, and 52 %"
        " without it.",
        born=2,
        at_birth="",
        widget=Widget(TRAIN, "tread_routes", 180),
        simpletuner="tread_config.routes",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_routes(self.routes)
