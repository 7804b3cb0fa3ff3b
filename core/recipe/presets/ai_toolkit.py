"""RunComfy's guide to Wan 2.2 T2V A14B with AI-Toolkit: a character, a style or a motion, for four sizes of GPU.

https://www.runcomfy.com/trainer/ai-toolkit/wan-2-2-t2v-14b-lora-training, by the numbers of its sections. Its steps count
both experts, those here each one, and are therefore half.
"""

from dataclasses import dataclass, field
from typing import Any

from .preset import Preset, Says, plain, told

CARDS = (12, 24, 48, 80)
SOURCE = "Numbers such as 6.1 are sections of RunComfy's guide to Wan 2.2 T2V with AI-Toolkit."

_TRAINED: Says = {
    "learning_rate": (1e-4, "5.7.1: Learning Rate 0.0001; 0.00005 where previews jump about."),
    "optimizer": (
        "adamw",
        "5.7.1: AdamW8Bit, to save memory, which behaves as AdamW. AdamW needs nothing installed, and its state is small.",
    ),
    "batch_size": (1, "5.7.1: Batch Size 1; 2 on an H100 if there is room."),
    "gradient_accumulation": (1, "5.7.1: Gradient Accumulation 1; 2 to 4 in place of a larger batch."),
    "loss": ("mse", "5.7.1: Loss Type Mean Squared Error."),
    "alpha": (0.0, "AI-Toolkit scales by one: alpha is the rank."),
    "ema": (False, "5.7.3: Use EMA off."),
    "caption_dropout": (0.05, "5.9: Caption Dropout Rate 0.05."),
    "checkpoint_every": (250, "5.6: Save Every 250."),
    "keep_last": (6, "5.6: Max Step Saves to Keep 4 or 6: an earlier one is often better than the last."),
    "preview_every": (250, "5.10: samples every 250 to 500 steps."),
    "preview_cfg": (4.0, "5.10: Guidance Scale 2 to 4."),
}
_DATA: Says = {
    "aspect_buckets": (True, "4.2: files are sorted into buckets."),
    "upscale": (False, "4.2: files are scaled down into the resolutions, never up."),
    "frame_sampling": ("even", "4.3: frames are taken evenly over the whole clip."),
    "flip_x": (False, "5.9: Flip X off."),
    "flip_y": (False, "5.9: Flip Y off."),
}


@dataclass(frozen=True)
class _Kind:
    """What is trained: what the guide says of it on every GPU."""

    title: str
    description: str
    train: Says
    data: Says = field(default_factory=dict[str, tuple[Any, str]])
    asks: str = ""


_KINDS = {
    "character": _Kind(
        "Character",
        "A person or a figure that a word calls: 10 to 30 pictures or short clips of it, in other poses, places and light.",
        {
            "steps": (1500, "6.1: Steps 2000 to 3000, of which each expert has half."),
            "timestep_sampling": ("uniform", "6.1: Timestep Type Linear, or Sigmoid."),
            "timestep_bias": ("balanced", "6.1: Timestep Bias Balanced."),
            "output_preservation": (0.0, "6.1: DOP is a choice for a character: 1, with class_word person."),
        },
        asks="a trigger_word for the dataset, which also stands in the captions, or [trigger] in its place",
    ),
    "style": _Kind(
        "Style",
        "A look for any scene: 10 to 40 pictures or clips that share it and nothing else. Keeps what the model knows "
        "(output_preservation), for which a step takes about 2.5 times as long.",
        {
            "steps": (1250, "6.2: Steps 1500 to 2500, of which each expert has half."),
            "timestep_sampling": ("uniform", "6.2: Timestep Type Linear, or Shift."),
            "timestep_bias": ("favor_high_noise", "6.2: Timestep Bias Favor High Noise."),
            "output_preservation": (1.0, "6.2: DOP on, DOP Loss Multiplier 1."),
        },
        {"class_word": ("scene", "6.2: DOP Preservation Class scene, landscape or the like.")},
        asks="a trigger_word for the dataset, which also stands in the captions: output_preservation needs it",
    ),
    "motion": _Kind(
        "Motion or camera",
        "A movement for any subject: 10 to 30 clips of 3 to 8 seconds that show it, with captions that name it.",
        {
            "steps": (1250, "6.3: Steps 1500 to 2500, of which each expert has half."),
            "timestep_sampling": ("uniform", "6.3: Timestep Type Linear."),
            "timestep_bias": ("balanced", "6.3: Timestep Bias Balanced."),
            "output_preservation": (0.0, "6.3: DOP off."),
        },
        asks="clips, not pictures, and captions that name the movement",
    ),
}

_FP8 = "5.3: 4bit with ARA, or float8; fp8 is nearer to the model, needs no further file, and the plan swaps blocks."
_BF16 = "5.3: float8 or 4bit with ARA; bf16 is exact, and the plan finds it no slower with so much memory."
_STILL = "2: below 24 GB pictures alone, at 512."
_FEW = (17, "4.3: 33 on 24 GB; 17 is among the lengths that it names, for half the time on a small GPU.")
_33 = (33, "4.3: 33 on 24 GB.")


def _size(side: int, where: str) -> Says:
    return {"width": (side, where), "height": (side, where)}


_24 = {**_size(512, "3: 512 on 24 GB."), "num_frames": _33}
_LOOKS: dict[int, Says] = {  # of a character or a style
    12: {**_size(512, _STILL), "num_frames": (1, _STILL)},
    24: _24,
    48: {**_size(768, "3: 768 to 1024 on 48 to 64 GB."), "num_frames": (33, "3: 33 to 41 frames on 48 to 64 GB.")},
    80: {
        **_size(768, "5.9: 768 and 1024 on an H100."),
        "more_sizes": ("1024", "5.9: 768 and 1024 on an H100."),
        "num_frames": (41, "6.1, 6.2: 41 or 81 on an H100."),
    },
}
_MOVES: dict[int, Says] = {  # of a motion
    12: {**_size(512, "6.3: 512."), "num_frames": _FEW},
    24: {**_size(512, "6.3: 512."), "num_frames": _33},
    48: {**_size(512, "6.3: 512."), "num_frames": (81, "6.3: 41 to 81 on larger GPUs.")},
    80: {**_size(768, "6.3: 512, or 768 with enough memory."), "num_frames": (81, "6.3: 41 to 81 on larger GPUs.")},
}


def data_of(card_gb: int, *, moves: bool) -> Says:
    """Size and length of what is trained on a GPU of so much memory."""
    return {**_DATA, **(_MOVES if moves else _LOOKS)[card_gb]}


def model_of(card_gb: int) -> Says:
    """How the frozen model is held."""
    return {
        "precision": ("fp8", _FP8) if card_gb < 48 else ("bf16", _BF16),
        "checkpointing": ("auto", "5.2: Low VRAM on below 48 GB; here the plan decides."),
    }


def rank_of(card_gb: int, *, moves: bool) -> Says:
    """The capacity of the LoRA."""
    if card_gb < 80 or moves:
        return {"rank": (16, "5.5: Linear Rank 16 is usually enough.")}
    return {"rank": (32, "6.1, 6.2: Linear Rank 16 to 32 on an H100.")}


def train_of(card_gb: int, of_kind: Says, *, moves: bool) -> Says:
    """Everything of the training."""
    return {**_TRAINED, **of_kind, **rank_of(card_gb, moves=moves)}


def _preset(name: str, kind: _Kind, card_gb: int) -> Preset:
    moves = name == "motion"
    data, model = {**data_of(card_gb, moves=moves), **kind.data}, model_of(card_gb)
    train = train_of(card_gb, kind.train, moves=moves)
    return Preset(
        title=f"{kind.title}, {card_gb} GB",
        description=kind.description,
        kind=name,
        card_gb=card_gb,
        dataset=plain(data),
        model=plain(model),
        train=plain(train),
        why=told(data, model, train),
        source=SOURCE,
        asks=kind.asks,
    )


AI_TOOLKIT = {f"{name}-{gb}gb": _preset(name, kind, gb) for name, kind in _KINDS.items() for gb in CARDS}
