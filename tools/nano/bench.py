"""Compares ways of training: teaches concepts with every combination of settings and measures each LoRA:

python -m tools.nano bench --concepts star swing --seeds 1 2 --vary adapter.rank=4,16 --stages high,both --out FOLDER

Writes FOLDER/results.csv, a row as each run ends, and FOLDER/plot.svg; prints a table. Runs that have a row are not
made again, so an interrupted bench goes on, and a later one adds to it. --vary takes every setting of a training, and
may be given several times. Which expert a motion and a texture need (nano/README.md has the result):

python -m tools.nano bench --concepts dive barred --seeds 1 2 3 --set clips=24 --stages high,low,both --steps 400 \
    --measure-every 100 --prompts 48 --out FOLDER

There each expert is trained once for a concept: a pair consists of the LoRAs that were measured alone.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from ...core.errors import ConfigError
from ...core.serial import digest, to_dict
from ...core.train.run_folder import RunFolder
from .command import add_common_arguments, run_command, trainer_of, workshop_of
from .concepts import CONCEPTS, Concept
from .evaluate import SAMPLING, Family, decisive
from .exam import Answers, Exam, Score, answer, check_count, grade
from .family import STAGES
from .lessons import Lesson, Train, teach, with_lora
from .plan import STAGE_SETS, Run, planned
from .plot import plot
from .results import COLUMNS, Results, Row, percent, table
from .workshop import Workshop

REACHED = 0.9  # share of prompts that counts as learnt


class Bench:
    """Teaches and measures; the base is loaded, and asked, only once."""

    def __init__(self, workshop: Workshop, *, num_prompts: int, measure_every: int, train: Train) -> None:
        check_count(num_prompts)
        if measure_every < 1:
            raise ConfigError(f"measure-every is a number of steps, at least 1; got {measure_every}.")
        # Runs with another rhythm of checkpoints are other runs: theirs are not the snapshots that are measured here.
        self.workshop = replace(workshop, runs=f"runs/measured-every-{measure_every}")
        self.num_prompts = num_prompts
        self.measure_every = measure_every
        self._train = train
        self._family: Family | None = None
        self._off: dict[Concept, Answers] = {}
        self._files = workshop.identities()

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of all runs: they take far more room than the LoRAs, which stay."""
        for folder in (self.workshop.folder / self.workshop.runs).glob("*"):
            shutil.rmtree(RunFolder(folder).checkpoints_path, ignore_errors=True)

    @property
    def family(self) -> Family:
        """The base."""
        if self._family is None:
            self._family = Family.load(self.workshop.files, self.workshop.device)
        return self._family

    def key(self, run: Run) -> str:
        """Digest of everything that decides a row."""
        exam = Exam.of(run.concept, self.num_prompts)
        asked = [[prompt for _, prompt in (*exam.triggered, *exam.plain)], exam.seed, decisive(SAMPLING)]
        return digest([to_dict(run.concept), to_dict(run.settings), asked, self.measure_every, self._files])

    def row(self, run: Run) -> Row:
        """Teach, measure along the way and at the end."""
        loop = run.settings.loop
        often = replace(loop, checkpoint_every=self.measure_every, keep_last=loop.steps)
        lessons = teach(run.concept, replace(run.settings, loop=often), self.workshop, self._train)
        for warning in dict.fromkeys(warning for lesson in lessons.values() for warning in lesson.warnings):
            print(warning, flush=True)
        exam = Exam.of(run.concept, self.num_prompts)
        if run.concept not in self._off:
            self._off[run.concept] = answer(self.family, exam)
        scores = {step: self._score(self._with(lessons, step), exam) for step in self._steps(loop.steps)}
        score = scores[loop.steps] = self._score(self._with(lessons), exam)
        values = {
            "concept": run.concept.name,
            "seed": loop.seed,
            "setting": run.setting,
            **{name: _share(getattr(score, name)) for name in ("learnt", "leaked", "bled", "kept", "kept_base")},
            **{f"asked_{name}": _share(value) for name, value in score.as_asked.items()},
            "steps_to_90": next((step for step, found in scores.items() if found.learnt >= REACHED), ""),
            **{f"loss_{stage}": f"{lessons[stage].loss:.4f}" if stage in lessons else "" for stage in STAGES},
            "seconds": f"{sum(lesson.seconds for lesson in lessons.values()):.2f}",
            "curve": " ".join(f"{step}:{_share(found.learnt)}" for step, found in scores.items()),
            "kept_curve": " ".join(f"{step}:{_share(found.kept)}" for step, found in scores.items()),
            "key": self.key(run),
        }
        return {name: str(values[name]) for name in COLUMNS}

    def _steps(self, steps: int) -> range:
        """After which a training of `steps` is measured, the last apart."""
        return range(self.measure_every, steps, self.measure_every)

    def _score(self, family: Family, exam: Exam) -> Score:
        return grade(exam, off=self._off[exam.concept], on=answer(family, exam))

    def _with(self, lessons: dict[str, Lesson], step: int | None = None) -> Family:
        loras = {stage: lesson.lora if step is None else lesson.snapshots[step] for stage, lesson in lessons.items()}
        return with_lora(self.family, loras.get("high"), loras.get("low"))


def _share(value: float) -> str:
    return f"{value:.4g}"


def run_all(bench: Bench, runs: Sequence[Run], results: Results) -> None:
    """Make the runs that have no row yet."""
    for number, run in enumerate(runs, start=1):
        told = f"[{number}/{len(runs)}] {run.concept.name} seed {run.settings.loop.seed} {run.setting}"
        if bench.key(run) in results.keys:
            print(f"{told}: has a row", flush=True)
            continue
        start = time.perf_counter()
        row = bench.row(run)
        results.add(row)
        print(
            f"{told}: learnt {percent(row['learnt'])}, kept {percent(row['kept'])} of {percent(row['kept_base'])}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


def main(arguments: list[str]) -> None:
    """Make the runs, write the results, print the table."""
    parser = argparse.ArgumentParser(
        prog="tools.nano bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, required=True, metavar="CONCEPT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--vary", action="append", default=[], metavar="FIELD=VALUE,...", help="values to compare")
    parser.add_argument("--stages", default="both", help=f"comma-separated, of {', '.join(STAGE_SETS)}")
    parser.add_argument("--measure-every", type=int, default=25, metavar="STEPS")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    run_command(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> None:
    runs = planned(options)
    bench = Bench(
        workshop_of(options),
        num_prompts=options.prompts,
        measure_every=options.measure_every,
        train=trainer_of(options),
    )
    results = Results(options.out / "results.csv")
    run_all(bench, runs, results)
    bench.drop_checkpoints()
    (options.out / "plot.svg").write_text(plot(results.rows), encoding="utf-8")
    print(table(results.rows))
