"""Facts of the Wan family: they agree with the models, and stand in one place."""

import re
from pathlib import Path

import pytest
from wan_train.core import facts
from wan_train.core.wan.config import WanConfig

PACK = Path(__file__).resolve().parents[2]
# A fact that was written out again: channels of the 5B model's latents, the pixels of a latent, frames of a latent.
AGAIN = re.compile(
    r"[!=]= ?48\b|\b16 if .* else 8\b|- 1\) // 4\b|\b4 \* \(\w+ - 1\) \+ 1|% 4 [!=]= 1|_LEN = 512|TOKENS = 512"
)


@pytest.mark.parametrize(
    ("channels", "clip", "shape"),
    [
        (16, (81, 480, 832), (16, 21, 60, 104)),
        (48, (121, 704, 1280), (48, 31, 44, 80)),
        (16, (1, 512, 512), (16, 1, 64, 64)),
    ],
)
def test_clips_and_their_latents(channels, clip, shape):
    assert facts.latent_shape(channels, *clip) == shape
    assert facts.clip_size(shape) == clip


def test_a_model_knows_its_vae_by_its_channels():
    for name, channels in facts.LATENT_CHANNELS.items():
        config = WanConfig(in_dim=channels, out_dim=channels)
        assert config.latent_format == facts.latent_format(channels) == name
        assert facts.pixels_per_latent(channels) == facts.PIXELS_PER_LATENT[name]
    assert WanConfig().text_len == facts.TEXT_TOKENS


def test_the_longest_clip_that_wan_takes():
    assert [facts.longest_clip(n) for n in (0, 1, 4, 5, 8, 9, 36)] == [1, 1, 1, 5, 5, 9, 33]


def test_each_fact_stands_in_one_place():
    rooms = [path for room in ("core", "nodes", "tools", "benchmarks") for path in (PACK / room).rglob("*.py")]
    found = [
        f"{path.relative_to(PACK)}:{number}: {line.strip()}"
        for path in rooms
        if path.name != "facts.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if AGAIN.search(line)
    ]
    assert found == []
