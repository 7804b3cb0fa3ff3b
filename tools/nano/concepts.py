"""What a LoRA can teach the nano models: looks and movements that they never saw, each under a new word.

Training sets and prompts are drawn from the two sides of the world's split, so no prompt asks for a combination of
words that a training set holds, whatever the seeds.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core.data.captions import apply_trigger
from ...core.errors import ConfigError
from .. import shapes
from . import world
from .world import Scene

WriteClip = Callable[[Path, list[np.ndarray], int], None]  # path, frames [H, W, 3] uint8, frames per second
Attribute = Literal["shape", "motion", "texture", "camera", "palette"]
PLACEHOLDER = "[trigger]"
IN_VAIN = 5000  # scenes in a row that bring nothing new: there is nothing new any more


@dataclass(frozen=True)
class Concept:
    """One value of one attribute, and the word that is to stand for it."""

    name: str
    attribute: Attribute
    value: str
    trigger: str  # in no caption of the base: the tokenizer spells it

    def on(self, scene: Scene) -> Scene:
        """The scene with it. A moving camera is seen by the tiles of the ground, before which objects stand still."""
        scene = replace(scene, **{self.attribute: self.value})  # type: ignore[arg-type]
        return replace(scene, background="tiled", motion="still") if self.attribute == "camera" else scene


CONCEPTS = {
    concept.name: concept
    for concept in (
        Concept("star", "shape", "star", "zorp"),
        Concept("heart", "shape", "heart", "blik"),
        Concept("moon", "shape", "moon", "quax"),
        Concept("swing", "motion", "swing", "vemb"),
        Concept("dive", "motion", "dive", "mulf"),
        Concept("barred", "texture", "barred", "frun"),
        Concept("cored", "texture", "cored", "jidz"),
        Concept("tilt", "camera", "tilt up", "skov"),
        Concept("duotone", "palette", "duotone", "wuft"),
    )
}


def training_scenes(concept: Concept, clips: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes of the concept, each with a caption that has [trigger] where the concept's word belongs.

    Shapes, colours, motions and backgrounds are balanced: each comes up before one comes up again.
    """
    return _captioned(concept, _scenes(concept, seed, test=False), clips, f"training/{seed}")


def prompts(concept: Concept, count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes of the concept in combinations that no training set holds, no two alike, each with a caption to prompt.

    Those of a camera may be alike but for what no word says.

    ConfigError if there are not so many.
    """
    scenes = _scenes(concept, seed, test=True)
    if concept.attribute != "camera":  # of which there are few: its objects stand still, on one ground
        scenes = _distinct(scenes)
    asked = _captioned(concept, scenes, count, f"prompts/{seed}")
    if len(asked) < count:
        raise ConfigError(
            f"there are {len(asked)} scenes of the concept {concept.name} that no training set holds, and {count} prompts "
            "were asked for."
        )
    return [(scene, apply_trigger(text, concept.trigger, "a prompt")) for scene, text in asked]


def other_scenes(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes of what the base knows, with plain captions: beside a concept they keep the rest as it was."""
    rng = random.Random(f"others/{seed}")
    known = (scene for scene in world.scenes(rng.getrandbits(32), "train") if scene.camera == "fixed")
    return [(scene, world.caption(scene, rng)) for scene in islice(known, count)]


def write_dataset(
    folder: Path,
    concept: Concept,
    clips: int,
    seed: int,
    *,
    others: int = 0,
    size: int = 2 * world.SIZE,
    write_clip: WriteClip = shapes.write_clip,
) -> list[Path]:
    """Write the training scenes as mp4 files of size x size pixels, each with a .txt caption; return the mp4 paths.

    `others`: so many clips of `other_scenes` as well. Captions then have the concept's word itself and not [trigger]: a
    trigger word that is set for a dataset is put in front of each caption without it. At the default the clips have twice
    the size that they are trained at. Equal arguments give equal bytes.
    """
    if clips < 1:
        raise ConfigError(f"a training set needs at least 1 clip, got {clips}.")
    taught = training_scenes(concept, clips, seed)
    if others:
        taught = [(scene, apply_trigger(text, concept.trigger, "a clip")) for scene, text in taught]
    named = [(f"{concept.name}_{index:02d}", *each) for index, each in enumerate(taught)]
    named += [(f"other_{index:02d}", *each) for index, each in enumerate(other_scenes(others, seed))]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, scene, text in named:
        path = folder / f"{name}.mp4"
        write_clip(path, list(world.draw(scene, size=size)), world.FPS)
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def _captioned(concept: Concept, scenes: Iterator[Scene], count: int, stream: str) -> list[tuple[Scene, str]]:
    rng = random.Random(stream)
    words = {concept.attribute: PLACEHOLDER}
    return [(scene, world.caption(scene, rng, words)) for scene in islice(scenes, count)]


def _distinct(scenes: Iterator[Scene]) -> Iterator[Scene]:
    """Leaves out scenes whose words were there before; ends where no new ones come any more."""
    seen, in_vain = set(), 0
    for scene in scenes:
        words = replace(scene, jitter=0)
        in_vain = in_vain + 1 if words in seen else 0
        if in_vain == IN_VAIN:
            return
        if not in_vain:
            seen.add(words)
            yield scene


def _scenes(concept: Concept, seed: int, *, test: bool) -> Iterator[Scene]:
    """Scenes of the concept without end, with a fixed camera for all but its own, from one side of the split."""
    rng = random.Random(f"{concept.name}/{seed}/{test}")
    choices: dict[str, Sequence[str]] = {
        "shape": world.SHAPES,
        "colour": list(world.COLOURS),
        "motion": world.MOTIONS,
        "background": world.BACKGROUNDS,
    }
    if concept.attribute == "camera":
        choices |= {"motion": ["still"], "background": ["tiled"]}
    if concept.attribute == "palette" and test:  # what it does not change says nothing of it
        choices["colour"] = list(world.NEW_PALETTES[concept.value])
    balanced = {name: _shuffled(rng, values) for name, values in choices.items() if name != concept.attribute}
    while True:
        words = {name: next(values) for name, values in balanced.items()}
        fitting = [scene for scene in _with_rest(concept, words) if scene.is_test == test]
        if fitting:
            yield replace(rng.choice(fitting), jitter=rng.getrandbits(32))


def _with_rest(concept: Concept, words: dict[str, str]) -> Iterator[Scene]:
    """All scenes with these words, about as often as the base's world has the others.

    As there small objects are plain, and of two objects both are small.
    """
    small = [("small", "plain", 1), ("small", "plain", 2)] * len(world.TEXTURES)
    for size, texture, count in (*small, *(("large", texture, 1) for texture in world.TEXTURES)):
        scene: dict[str, Any] = {"texture": texture, "size": size, "count": count, **words}
        yield concept.on(Scene(**scene))


def _shuffled(rng: random.Random, values: Sequence[str]) -> Iterator[str]:
    """The values in random order, again and again."""
    while True:
        yield from rng.sample(values, len(values))
