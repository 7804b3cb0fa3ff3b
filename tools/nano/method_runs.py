"""One run of a method: both experts are taught a pair of concepts, and looked at four times on the way."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.serial import digest, to_dict
from ...core.train.held_out import HeldOutLoss
from ...core.train.scores import scored
from .evaluate import SAMPLING, decisive
from .exam import PROMPTS
from .family import STAGES, Files
from .methods import METHODS, Method
from .pairs import Pair, PairExam, movements
from .quick import Examiner, Pupil, QuickSchool, held_out_loss
from .settings import Settings, changed, differing

GRADES = ("look", "move", "both", "bled", "leaked", "kept", "aligned", "moves", "moves_plain")
COLUMNS: tuple[str, ...] = (
    "method", "group", "pair", "seed", "step", "seconds", *GRADES, "base_kept", "base_aligned", "held_out", "preview", "score",
    "is_end", "key",
)  # fmt: skip
Row = dict[str, str]


@dataclass(frozen=True)
class Looking:
    """How closely a run is looked at."""

    prompts: int = PROMPTS  # of each kind
    marks: int = 4  # times, evenly spread over its steps, the end among them

    def steps(self, steps: int) -> list[int]:
        """Those after which a run of so many is looked at."""
        return [steps * number // self.marks for number in range(1, self.marks + 1)]


@dataclass(frozen=True)
class MethodRun:
    """What is run: as many rows as there are marks."""

    method: Method
    pair: str
    seed: int
    common: tuple[tuple[str, str], ...] = ()  # settings of all methods, over those that they have

    @property
    def told(self) -> str:
        """For a line of the log."""
        return f"{self.method.name}, {self.pair}, seed {self.seed}"

    def settings(self) -> dict[str, Settings]:
        """By expert; only those that are trained."""
        found = {
            stage: changed(self.method.settings(stage, self.common), "loop.seed", str(self.seed)) for stage in STAGES
        }
        return {stage: settings for stage, settings in found.items() if stage in settings.stages}

    def key(self, looking: "Looking", models: str) -> str:
        """Digest of what decides the rows. Where a default changes, rows of before would pass for today's: make them anew."""
        settings = {stage: differing(settings) for stage, settings in self.settings().items()}
        return digest([to_dict(Pair.of(self.pair)), settings, to_dict(looking), decisive(SAMPLING), models])

    def as_json(self) -> dict[str, object]:
        """To be sent to a worker."""
        return {"method": self.method.name, "pair": self.pair, "seed": self.seed, "common": self.common}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "MethodRun":
        """What `as_json` gave."""
        common = data["common"]
        assert isinstance(common, list)
        assert isinstance(data["seed"], int)
        return cls(METHODS[str(data["method"])], str(data["pair"]), data["seed"], tuple((n, v) for n, v in common))


@dataclass
class _Mark:
    step: int
    seconds: float
    grades: dict[str, float]
    loss: HeldOutLoss
    moves: float  # of a clip of a held-out caption, as a share of that of the held-out clip


@dataclass
class Runner:
    """Makes runs in this process."""

    school: QuickSchool
    folder: Path  # of encodings
    looking: Looking
    _examiners: dict[str, Examiner] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Files, folder: Path, looking: Looking, device: str, pairs: Sequence[str] = ()) -> "Runner":
        """With the models of the files; what the base shows of these pairs is known from the start."""
        found = cls(QuickSchool(files, device), folder, looking)
        for pair in pairs:
            found._examiner(Pair.of(pair))
        return found

    def rows(self, run: MethodRun) -> list[Row]:
        """Teach, look, and grade: a row for each mark."""
        pair, settings = Pair.of(run.pair), run.settings()
        examiner = self._examiner(pair)
        pupils: dict[str, Pupil] = {}
        for stage, own in settings.items():
            data = self.school.data(pair, own, self.folder)
            pupils[stage] = self.school.pupil(self.school.job(stage, own, data))
        marks = list(self._marks(pupils, examiner))
        lowest = min((mark.loss for mark in marks), key=lambda loss: loss.loss)
        key = run.key(self.looking, self.school.identity)
        rows = []
        for mark in marks:
            score = scored(mark.step, Path(), mark.loss, lowest, mark.moves).score
            numbers = {
                **{name: mark.grades[name] for name in GRADES},
                **{f"base_{name}": examiner.base[name] for name in ("kept", "aligned")},
                "seconds": mark.seconds, "held_out": mark.loss.loss, "preview": mark.moves, "score": score,
            }  # fmt: skip
            names = {
                "method": run.method.name, "group": run.method.group, "pair": run.pair, "seed": run.seed, "step": mark.step,
                "is_end": int(mark is marks[-1]), "key": key,
            }  # fmt: skip
            told = {name: "" if value is None else f"{value:.4g}" for name, value in numbers.items()}
            rows.append({name: str({**names, **told}[name]) for name in COLUMNS})
        del pupils
        gc.collect()  # models and their recorded graphs refer to each other
        return rows

    def _examiner(self, pair: Pair) -> Examiner:
        if pair.name not in self._examiners:
            self._examiners[pair.name] = Examiner(self.school, PairExam.of(pair, self.looking.prompts))
        return self._examiners[pair.name]

    def _marks(self, pupils: Mapping[str, Pupil], examiner: Examiner) -> Sequence[_Mark]:
        job = next(iter(pupils.values())).job
        shown = job.held_out_samples[-1]  # of the movement
        (own,) = movements(self.school.latents_of(shown)[None])
        marks, seconds = [], 0.0
        for step in self.looking.steps(job.loop.steps):
            seconds += sum(self.school.train(pupil, step) for pupil in pupils.values())
            grades, moves = examiner.look(pupils, shown.caption)
            loss = _mean_loss([held_out_loss(pupil) for pupil in pupils.values()])
            marks.append(_Mark(step, seconds, grades, loss, moves / own))
        return marks


def _mean_loss(losses: Sequence[HeldOutLoss]) -> HeldOutLoss:
    """Of the experts: sample by sample, and level by level of each one's own."""
    found, *others = losses
    for number, other in enumerate(others, start=2):
        found = found.between(other, 1 / number)
    return found
