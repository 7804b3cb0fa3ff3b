"""What a LoRA taught the nano models, and what they forgot by it: prompts, the judge's verdicts, shares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ...core.errors import ConfigError
from ...core.sample.sampler import SampleOptions
from .concepts import Concept, prompts
from .evaluate import SAMPLING, Family, right, shares, test_scenes
from .ground import see
from .judge import Verdict
from .world import Scene

KEPT = ("shape", "colour", "motion")  # what must be as asked for a prompt without the trigger to count as kept
PROMPTS = 24
EXAM_SEED = 7000  # not the training's: runs with different seeds stay comparable


def check_count(prompts: int) -> None:
    """Raises ConfigError for an exam without questions."""
    if prompts < 1:
        raise ConfigError(f"an exam needs at least 1 prompt, got {prompts}.")


@dataclass(frozen=True)
class Exam:
    """What a family is asked: the concept in new combinations, and scenes of the base's world without its word."""

    concept: Concept
    triggered: tuple[tuple[Scene, str], ...]
    plain: tuple[tuple[Scene, str], ...]
    seed: int

    @classmethod
    def of(cls, concept: Concept, count: int, seed: int = EXAM_SEED) -> "Exam":
        """`count` prompts of each kind."""
        check_count(count)
        return cls(concept, tuple(prompts(concept, count, seed)), tuple(islice(test_scenes(seed), count)), seed)


@dataclass(frozen=True)
class Answers:
    """What a family showed in an exam."""

    triggered: tuple[Verdict, ...]
    plain: tuple[Verdict, ...]
    clips: np.ndarray  # [N, F, H, W, 3] uint8, of the triggered prompts


def answer(family: Family, exam: Exam, sampling: SampleOptions = SAMPLING) -> Answers:
    """Generate and judge; a prompt gets the same noise from every family."""
    clips = show(family, exam.triggered, exam.seed, sampling)
    plain = show(family, exam.plain, exam.seed, sampling)
    return Answers(tuple(map(see, clips)), tuple(map(see, plain)), clips)


def show(family: Family, asked: Sequence[tuple[Scene, str]], seed: int, sampling: SampleOptions) -> np.ndarray:
    """A clip for each prompt, [N, F, H, W, 3] uint8."""
    return family.generate([prompt for _, prompt in asked], range(seed, seed + len(asked)), sampling)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares of prompts, 0 to 1; "on" and "off" are with the LoRA and without."""

    learnt: float  # with the trigger, on: the judge finds the concept
    leaked: float  # with the trigger, off
    bled: float  # without the trigger, on
    kept: float  # without the trigger, on: shape, colour and motion are all as asked
    kept_base: float  # the same, off
    as_asked: dict[str, float] = field(default_factory=dict)  # with the trigger, on: each attribute by itself

    @property
    def retention(self) -> float:
        """`kept` as a share of `kept_base`; NaN where the base gets nothing right."""
        return self.kept / self.kept_base if self.kept_base else math.nan

    def __str__(self) -> str:
        others = ", ".join(f"{name} {share:.0%}" for name, share in self.as_asked.items())
        return (
            f"with the trigger: concept {self.learnt:.0%} (without the LoRA {self.leaked:.0%}); {others}\n"
            f"without the trigger: as asked {self.kept:.0%} (without the LoRA {self.kept_base:.0%}, "
            f"so {self.retention:.0%} is kept), concept {self.bled:.0%}"
        )


def shows(verdict: Verdict, concept: Concept, scene: Scene) -> bool:
    """Whether the concept is to be seen where a scene was asked for. A palette is, where it changes the scene's colour."""
    if concept.attribute == "palette":
        return verdict.colour == concept.on(scene).seen_colour != scene.colour
    return bool(getattr(verdict, concept.attribute) == concept.value)


def learnt(verdicts: Sequence[Verdict], concept: Concept, scenes: Sequence[Scene]) -> float:
    """Share of clips in which the concept is to be seen; `scenes` are what was asked for."""
    return sum(shows(verdict, concept, scene) for verdict, scene in zip(verdicts, scenes, strict=True)) / len(verdicts)


def kept(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> float:
    """Share of clips in which shape, colour and motion are all as asked."""
    rows = [right(verdict, scene) for verdict, scene in zip(verdicts, scenes, strict=True)]
    return sum(all(row[name] for name in KEPT) for row in rows) / len(rows)


def grade(exam: Exam, *, off: Answers, on: Answers) -> Score:
    """The score of a LoRA from what the family showed without it and with it."""
    plain_scenes = [scene for scene, _ in exam.plain]
    scenes = [scene for scene, _ in exam.triggered]
    return Score(
        learnt=learnt(on.triggered, exam.concept, scenes),
        leaked=learnt(off.triggered, exam.concept, scenes),
        bled=learnt(on.plain, exam.concept, plain_scenes),
        kept=kept(on.plain, plain_scenes),
        kept_base=kept(off.plain, plain_scenes),
        as_asked=shares(on.triggered, scenes),
    )
