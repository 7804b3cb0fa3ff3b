"""Videos made while the LoRA learns."""

from dataclasses import dataclass

from ..facts import NUM_TIMESTEPS
from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(Options, group="previews"):
    """Videos made while the LoRA learns, with what it is then."""

    every: int = option(
        0,
        help="Steps between two previews: short videos made with the LoRA as it is then.",
        more="They have the caption and the size of the first held-out sample, else of the first one. The high noise stage"
        " shows where its expert hands over: blurry, but motion and composition are seen. The low noise stage starts from"
        " noise on the sample itself, and shows the look.",
        zero="no previews",
        unit="steps",
        in_key=False,
        widget=Widget(TRAIN, "preview_every", 29, most=1_000_000),
        musubi="sample_every_n_steps",
        aitoolkit="sample.sample_every",
        simpletuner="validation_step_interval",
    )
    steps: int = option(
        16,
        help="Sampling steps of a preview, of which a stage makes those inside its noise levels.",
        least=1,
        most=NUM_TIMESTEPS,
        in_key=False,
        widget=Widget(TRAIN, "preview_steps", 30),
        musubi="sample_steps",
        aitoolkit="sample.sample_steps",
        simpletuner="validation_num_inference_steps",
    )
    cfg: float = option(
        5.0,
        help="Guidance scale of a preview, away from the empty caption.",
        more="1: off, twice as fast.",
        least=0.0,
        most=1000.0,
        hint="; 1 is no guidance",
        in_key=False,
        widget=Widget(TRAIN, "preview_cfg", 31, most=30.0, step=0.1),
        musubi="cfg_scale",
        aitoolkit="sample.guidance_scale",
        simpletuner="validation_guidance",
    )
    shift: float = option(
        0.0,
        help="Time shift of the sampler of previews.",
        zero="the official one of the model, as Preview LoRA has it: 12 for Wan 2.2 T2V A14B, 5 for others",
        most=1e4,
        in_key=False,
        musubi="flow_shift",
    )
