"""An effect for Wan 2.2 I2V A14B: something that happens to whatever the first frame shows.

The numbers are those of a motion in the guide to AI-Toolkit (`ai_toolkit.py`), whose section 5.7.2 has a pure motion favour
high noise: the first frame gives the look, and the LoRA has to learn what happens.
"""

from .ai_toolkit import CARDS, SOURCE, data_of, model_of, train_of
from .preset import Preset, Says, plain, told

_TRAIN: Says = {
    "steps": (1250, "6.3: Steps 1500 to 2500 for a motion, of which each expert has half."),
    "timestep_sampling": ("uniform", "6.3: Timestep Type Linear for a motion."),
    "timestep_bias": ("favor_high_noise", "5.7.2: Favor High Noise for a pure motion, which that expert decides."),
    "output_preservation": (0.0, "6.3: DOP off for a motion."),
    "boundary": (0.0, "The official boundary of I2V A14B, 0.9."),
}


def _preset(card_gb: int) -> Preset:
    data, model = data_of(card_gb, moves=True), model_of(card_gb)
    train = train_of(card_gb, _TRAIN, moves=True)
    return Preset(
        title=f"Image-to-video effect, {card_gb} GB",
        description="An effect on whatever the first frame shows: 10 to 30 clips of 3 to 8 seconds that begin before it "
        "happens, with captions that name it. For Wan 2.2 I2V A14B.",
        kind="effect",
        family="i2v-a14b",
        card_gb=card_gb,
        dataset=plain(data),
        model=plain(model),
        train=plain(train),
        conditioning="first frame",
        why={**told(data, model, train), "condition_on": "An image-to-video model is given the first frame."},
        source=SOURCE,
        asks="clips, not pictures, that begin before the effect, and the files of Wan 2.2 I2V A14B",
    )


IMAGE_TO_VIDEO = {f"effect-{gb}gb": _preset(gb) for gb in CARDS}
