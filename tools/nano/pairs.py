"""Two concepts in one training, a look and a movement, each by its own word: what is shown, what is asked, what came of it.

So one run says of a method how it learns a look, how a movement, whether the two go together, and whether one shows where
the other was asked for (JointTuner, arXiv:2503.23951, measures its grid of appearances and motions so).

N clips, C channels, F latent frames, H W latent size.
"""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from torch import Tensor

from ...core.data.class_word import with_class_word
from ...core.errors import ConfigError
from ...core.prompts import apply_trigger
from ...core.train.scores import motion
from . import world
from .concepts import CONCEPTS, Concept, other_scenes, prompts, training_scenes
from .evaluate import right, test_scenes
from .exam import EXAM_SEED, kept, learnt, shows
from .judge import Verdict
from .world import Scene

MAIN_PAIR = "barred+dive"  # what methods are compared on
GRID = (
    *(f"{look}+{move}" for look in ("barred", "star", "duotone") for move in ("dive", "tilt")),
    *(f"{MAIN_PAIR}:{taught}" for taught in ("look", "move")),
)
HELD_OUT = 2  # clips of each concept
KINDS = ("look", "move", "both", "plain")  # of prompts
# What the base has in a concept's place, for output preservation.
CLASS_WORDS = {"shape": "circle", "texture": "plain", "motion": "at rest"}

Asked = tuple[Scene, str]  # what is to be seen, and the prompt
T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """One clip of a training set."""

    name: str
    scene: Scene
    caption: str
    class_caption: str = ""  # with the class word in place of the concept's; "": it has none
    held_out: bool = False
    is_known: bool = False  # the base knows it already


@dataclass(frozen=True)
class Pair:
    """A look and a movement."""

    look: Concept
    move: Concept
    only: str = ""  # "look" or "move": one that is taught alone, so that the other is asked for in vain

    @property
    def name(self) -> str:
        """Such as barred+dive, or barred+dive:look where only the look is taught."""
        return f"{self.look.name}+{self.move.name}{f':{self.only}' if self.only else ''}"

    @classmethod
    def of(cls, name: str) -> "Pair":
        """By its name. ConfigError for another one."""
        concepts, colon, only = name.partition(":")
        look, _, move = concepts.partition("+")
        if look not in CONCEPTS or move not in CONCEPTS or only not in (("look", "move") if colon else ("",)):
            raise ConfigError(
                f"there is no pair '{name}': two of {', '.join(CONCEPTS)}, with + between them, and :look or :move behind "
                "them where only one is taught."
            )
        return cls(CONCEPTS[look], CONCEPTS[move], only)

    @property
    def taught(self) -> list[Concept]:
        """What a training set shows."""
        return [concept for kind, concept in (("look", self.look), ("move", self.move)) if self.only in ("", kind)]

    def shown(self, clips: int, others: int, seed: int) -> list[Shown]:
        """The training set: of each concept that is taught `clips` and some held out, of what the base knows `others`."""
        found: list[Shown] = []
        for concept in self.taught:
            scenes = training_scenes(concept, clips + HELD_OUT, seed)
            for number, (scene, text) in enumerate(scenes):
                caption = apply_trigger(text, concept.trigger, "a clip")
                of_class = with_class_word(caption, concept.trigger, CLASS_WORDS.get(concept.attribute, ""))
                name = f"{concept.name}_{number:02d}"
                found.append(Shown(name, scene, caption, of_class, held_out=number >= clips))
        known = (
            Shown(f"other_{number:02d}", *each, is_known=True) for number, each in enumerate(other_scenes(others, seed))
        )
        return [*found, *known]

    def together(self, count: int, seed: int) -> list[Asked]:
        """Scenes of both at once, which no training set holds."""
        rng = random.Random(f"{self.look.name}+{self.move.name}/{seed}")
        words = {concept.attribute: concept.trigger for concept in (self.look, self.move)}
        scenes = (self.move.on(scene) for scene, _ in prompts(self.look, count, seed))
        return [(scene, world.caption(scene, rng, words)) for scene in scenes]


@dataclass(frozen=True)
class PairExam:
    """What is asked after a training of a pair, by kind of prompt."""

    pair: Pair
    asked: dict[str, tuple[Asked, ...]]

    @classmethod
    def of(cls, pair: Pair, count: int, seed: int = EXAM_SEED) -> "PairExam":
        """`count` prompts of each kind."""
        asked = {
            "look": prompts(pair.look, count, seed),
            "move": prompts(pair.move, count, seed),
            "both": pair.together(count, seed),
            "plain": islice(test_scenes(seed), count),
        }
        return cls(pair, {kind: tuple(asked[kind]) for kind in KINDS})

    @property
    def all(self) -> list[Asked]:
        """Of all kinds, one after the other."""
        return [each for kind in KINDS for each in self.asked[kind]]

    def by_kind(self, values: Sequence[T]) -> dict[str, list[T]]:
        """What belongs to the prompts of `all`, by kind."""
        rest = iter(values)
        return {kind: list(islice(rest, len(self.asked[kind]))) for kind in KINDS}


def grade_pair(exam: PairExam, verdicts: Sequence[Verdict], moves: Sequence[float]) -> dict[str, float]:
    """Shares of clips, 0 to 1, and how much moves; `moves`: of each clip, as a share of what moves in a drawn one.

    look, move: the concept is seen where its word is. both: both are where both words are. bled: one is seen where only the
    other's word is. leaked: one of them is seen where neither word is. kept: the rest of the world is as asked without a word.
    aligned: share of all other attributes that are as asked beside a word. moves: the median over the prompts of the movement,
    moves_plain: over those without a word in which something moves.
    """
    of, look, move = exam.by_kind(verdicts), exam.pair.look, exam.pair.move
    scenes = {kind: [scene for scene, _ in asked] for kind, asked in exam.asked.items()}
    plain = scenes["plain"]
    places = exam.by_kind(moves)
    of_moving = [amount for amount, scene in zip(places["plain"], plain, strict=True) if scene.motion != "still"]
    bled = statistics.fmean([learnt(of["look"], move, scenes["look"]), learnt(of["move"], look, scenes["move"])])
    return {
        "look": learnt(of["look"], look, scenes["look"]),
        "move": learnt(of["move"], move, scenes["move"]),
        "both": _mean(
            shows(one, look, scene) and shows(one, move, scene)
            for one, scene in zip(of["both"], scenes["both"], strict=True)
        ),
        "bled": bled,
        "leaked": _mean(
            shows(one, look, scene) or shows(one, move, scene) for one, scene in zip(of["plain"], plain, strict=True)
        ),
        "kept": kept(of["plain"], plain),
        "aligned": _mean(_others_right(exam, of)),
        "moves": statistics.median(places["move"]),
        "moves_plain": statistics.median(of_moving) if of_moving else 1.0,
    }


def _mean(values: Iterable[bool]) -> float:
    return statistics.fmean(map(float, values))


def _others_right(exam: PairExam, of: dict[str, list[Verdict]]) -> Iterator[bool]:
    """For the prompts with a word: whether each attribute that is no concept's is as asked."""
    own = {"colour" if one.attribute == "palette" else one.attribute for one in (exam.pair.look, exam.pair.move)}
    for kind in ("look", "move", "both"):
        for verdict, (scene, _) in zip(of[kind], exam.asked[kind], strict=True):
            yield from (is_right for name, is_right in right(verdict, scene).items() if name not in own)


def movements(latents: Tensor) -> list[float]:
    """How much moves in each of the clips' latents [N, C, F, H, W]."""
    return [motion(clip) or 0.0 for clip in latents]
