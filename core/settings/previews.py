"""Videos made while the LoRA learns, and the prompts that they are made of."""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..facts import FRAMES_PER_LATENT, NUM_TIMESTEPS
from .option import TEXT, TRAIN, Options, Widget, option

SeedWalk = Literal["fixed", "prompts", "steps"]
_MOST_PIXELS, _MOST_FRAMES = 4096, 1025
OLD_SAMPLERS = {"unipc": "uni_pc", "dpm++2m": "dpmpp_2m"}  # recipes, jobs and workflows from before the host's names
_BLOCKS = re.compile(r"\s*(\d+\s*(,\s*\d+\s*)*)?")


@dataclass(frozen=True, kw_only=True)
class SamplePromptOptions(Options, group="samples"):
    """The prompts of previews. They are encoded with the captions, and change nothing of the training."""

    prompts: str = option(
        "",
        help="Prompts of the previews that are made while training, one a line; empty: a caption of the dataset.",
        more='Or a JSON library: {"nickname": "prompt", ...}, where an entry may also be {"prompt": ..., "negative": ...,'
        ' "width": ..., "height": ..., "frames": ..., "seed": ..., "steps": ..., "cfg": ..., "shift": ..., "sampler": ...,'
        ' "scheduler": ...}. A line may end with'
        " musubi-tuner's --w --h --f --d --s --l --fs --n for the same. [trigger] becomes the trigger word.",
        page='A JSON list is read, too: ["prompt", {"prompt": ..., "seed": 7}].'
        " Without a value of its own a prompt has those of the training node (preview_width and so on). An image-to-video"
        " model is given the frame of the first held-out sample, so its previews have that sample's size; so have those of the"
        " low noise stage where the other expert is not known.",
        in_key=False,
        widget=Widget(TEXT, "sample_prompts", 1, advanced=False, multiline=True),
        musubi="sample_prompts",
        aitoolkit="sample.prompts",
        simpletuner="user_prompt_library",
    )
    negative: str = option(
        "",
        help="Negative prompt of the previews, for prompts that have none of their own.",
        more="Empty: the empty caption. It has no effect where preview_cfg is 1.",
        in_key=False,
        widget=Widget(TEXT, "sample_negative", 2, multiline=True),
        aitoolkit="sample.neg",
        simpletuner="validation_negative_prompt",
    )


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(Options, group="previews"):
    """How previews are made: short videos with the LoRA as it is then."""

    every: int = option(
        0,
        help="Steps between two previews: short videos made with the LoRA as it is then.",
        more="They show the sample prompts (sample_prompts); without any, the caption of the first held-out sample, or of the"
        " first sample. With other_dit a preview goes through both experts. Without it, the high noise stage shows"
        " where its expert hands over: blurry, but motion and composition are seen; the low noise stage starts from noise on"
        " the sample itself, and shows the look.",
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
        widget=Widget(TRAIN, "preview_shift", 210, most=100.0, step=0.1),
        musubi="flow_shift",
    )
    width: int = option(
        0,
        help="Width of previews in pixels, a multiple of 16 (32 for TI2V 5B).",
        zero="that of the sample",
        most=_MOST_PIXELS,
        in_key=False,
        widget=Widget(TRAIN, "preview_width", 150, step=16),
        aitoolkit="sample.width",
    )
    height: int = option(
        0,
        help="Height of previews in pixels, a multiple of 16 (32 for TI2V 5B).",
        zero="that of the sample",
        most=_MOST_PIXELS,
        in_key=False,
        widget=Widget(TRAIN, "preview_height", 151, step=16),
        aitoolkit="sample.height",
    )
    frames: int = option(
        0,
        help="Frames of a preview, 4n+1: 1, 5, ... 33, 81.",
        zero="as many as the sample has",
        most=_MOST_FRAMES,
        in_key=False,
        widget=Widget(TRAIN, "preview_frames", 152),
        aitoolkit="sample.num_frames",
        simpletuner="validation_num_video_frames",
    )
    seed: int = option(
        1,
        help="Seed of a preview's noise.",
        more="It is not the run's, so that runs with different seeds stay comparable.",
        most=2**63 - 1,
        in_key=False,
        widget=Widget(TRAIN, "preview_seed", 153, most=2**53 - 1),
        aitoolkit="sample.seed",
        simpletuner="validation_seed",
    )
    seed_walk: SeedWalk = option(
        "fixed",
        help="Whether the seed of previews changes.",
        more="fixed: all have the same. prompts: the second prompt has the next one, and so on. steps: the preview of step n"
        " has the seed plus n.",
        in_key=False,
        widget=Widget(TRAIN, "preview_seed_walk", 154),
        aitoolkit="sample.walk_seed",
    )
    at_start: bool = option(
        False,
        help="Also make a preview before the first step, to compare the others with.",
        in_key=False,
        not_with={"every": (0,)},
        widget=Widget(TRAIN, "preview_at_start", 155),
        musubi="sample_at_first",
        aitoolkit="!train.skip_first_sample",
        simpletuner="!disable_benchmark",
    )
    sampler: str = option(
        "euler",
        help="Sampler of previews: ComfyUI's of the same name.",
        more="Choose the one that you will generate with, else leave euler, or uni_pc for fewer steps. Previews with heun,"
        " dpm_2, dpmpp_sde and dpmpp_2s_ancestral take twice as long.",
        page="Those that add noise take it from the seed, as ComfyUI does. A preview of one expert alone, without the other one"
        " (other_dit), goes straight where the other one would work. Not here: ComfyUI's samplers with cfg_pp in their names,"
        " which need what the model says of the negative prompt by itself; those with gpu, which are the same as those without,"
        " with other noise; and some that are seldom used with Wan, such as seeds_2 and sa_solver.",
        values=("euler", "uni_pc", "dpmpp_2m"),
        methods="sample.samplers",
        in_key=False,
        widget=Widget(TRAIN, "preview_sampler", 156, old=tuple(OLD_SAMPLERS.items())),
    )
    scheduler: str = option(
        "simple",
        help="How the noise levels of previews are spaced: ComfyUI's scheduler of the same name.",
        more="Choose the one that you will generate with, else leave simple.",
        values=("simple", "normal", "beta"),
        methods="sample.schedulers",
        in_key=False,
        widget=Widget(TRAIN, "preview_scheduler", 157),
    )
    skip_layers: str = option(
        "",
        help="Skip-layer guidance of previews: the blocks that are left out, such as 9 or 9, 10; empty: off.",
        more="As ComfyUI's SkipLayerGuidanceDiT: guidance away from the prediction without these blocks. Steps with it"
        " need one forward pass more.",
        in_key=False,
        widget=Widget(TRAIN, "preview_skip_layers", 158),
        simpletuner="validation_guidance_skip_layers",
    )
    skip_scale: float = option(
        3.0,
        help="Strength of skip-layer guidance.",
        most=100.0,
        in_key=False,
        widget=Widget(TRAIN, "preview_skip_scale", 159, most=10.0, step=0.1),
        simpletuner="validation_guidance_skip_scale",
    )
    skip_start: float = option(
        0.01,
        help="Share of the way from noise to video after which skip-layer guidance begins.",
        most=1.0,
        in_key=False,
        widget=Widget(TRAIN, "preview_skip_start", 218, step=0.01),
        simpletuner="validation_guidance_skip_layers_start",
    )
    skip_stop: float = option(
        0.15,
        help="Share of the way from noise to video after which skip-layer guidance ends.",
        most=1.0,
        in_key=False,
        widget=Widget(TRAIN, "preview_skip_stop", 219, step=0.01),
        simpletuner="validation_guidance_skip_layers_stop",
    )
    lora: str = option(
        "",
        help="A LoRA file that is on the model in previews alone: its path.",
        more="Such as the 4-step LoRA of lightx2v for this expert: with preview_steps 4, preview_cfg 1 and preview_shift 5 you"
        " see what your LoRA does where you will use it, while it is trained on the plain model.",
        page="Such previews are made with the model's file as it is, without the precision of the training: it is read once"
        " where the GPU has room for the whole model, else for each sampling step, block by block, and adds a block to the"
        " memory of the run.",
        in_key=False,
        not_with={"every": (0,)},
        widget=Widget(TRAIN, "preview_lora", 211),
        aitoolkit="model.inference_lora_path",
    )
    other_lora: str = option(
        "",
        help="The same for the other expert (other_dit): the LoRA file that is on it in previews.",
        more="It has a file of its own: the low noise one where the high noise expert is trained.",
        in_key=False,
        not_with={"every": (0,)},
        widget=Widget(TRAIN, "preview_other_lora", 212),
    )
    with_merged: bool = option(
        True,
        help="Keep the LoRA of merge_into_base on in previews.",
        more="Off for a training adapter, which you leave out when you generate, too.",
        in_key=False,
        not_with={"every": (0,)},
        widget=Widget(TRAIN, "preview_with_merged", 213),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", OLD_SAMPLERS.get(self.sampler, self.sampler))
        super().__post_init__()
        check_sample_size(self.width, self.height, self.frames, "preview_")
        if not _BLOCKS.fullmatch(self.skip_layers):
            raise ConfigError(
                f"preview_skip_layers is '{self.skip_layers[:80]}', which are no blocks: write numbers with commas, 9, 10."
            )


def check_sample_size(width: int, height: int, frames: int, prefix: str) -> None:
    """ConfigError for sides and frames that no video of the models has; 0 is left open. `prefix`: of their names."""
    for name, side in (("width", width), ("height", height)):
        if side % 16 or not 0 <= side <= _MOST_PIXELS:
            raise ConfigError(f"{prefix}{name} must be a multiple of 16 up to {_MOST_PIXELS}, or 0, got {side}.")
    if frames and ((frames - 1) % FRAMES_PER_LATENT or not 1 <= frames <= _MOST_FRAMES):
        raise ConfigError(f"{prefix}frames must be 4n+1 (1, 5, ... 33, 81) up to {_MOST_FRAMES}, or 0, got {frames}.")
