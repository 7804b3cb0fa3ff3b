"""What a process of the campaign `kills` does: cache or train, and end itself with SIGKILL where it is told to.

It writes the phase it is in on a board, a small file that is mapped and so outlives it.
"""

import contextlib
import functools
import importlib
import io
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wan_train.core.cli.display import Display
from wan_train.core.launch import worker
from wan_train.core.recipe import pipeline
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.core.settings.job import job_from_json, job_to_json
from wan_train.core.train import claim, previews, run, run_plan
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run_folder import RunFolder

BOARD_BYTES = 64
# Imported where they are used, which takes seconds: once here, for all forks.
for package in ("diffusers.models.autoencoders.autoencoder_kl_wan", "transformers.models.umt5.modeling_umt5", "av"):
    importlib.import_module(package)


class Killer:
    """Knows the phase, and kills as the plan says once its phase has begun for the n-th time.

    Plan: `phase`, `occurrence`, and `mode`: "instant" after `amount` milliseconds, "operation" before the `amount`-th
    file operation in `place`, "half" in the middle of the `amount`-th write.
    """

    def __init__(self, plan: dict[str, Any], board: Path, place: Path):
        self._plan, self._place = plan, str(place)
        self._phases: list[str] = []
        self._seen, self._left, self._armed = 0, int(plan.get("amount", 0)), False
        with board.open("r+b") as file:
            self._board = mmap.mmap(file.fileno(), BOARD_BYTES)
        self._set("starting")
        if plan.get("mode") == "operation":
            sys.addaudithook(self._on_event)
        elif plan.get("mode") == "half":
            self._watch_writes()
        if plan.get("phase") == "anywhere":
            self._arm()

    def _set(self, phase: str) -> None:
        self._board[:] = phase.encode().ljust(BOARD_BYTES, b"\0")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The phase while this lasts; then the one before."""
        self._phases.append(name)
        self.enter(name)
        try:
            yield
        finally:
            self._phases.pop()
            self._set(self._phases[-1] if self._phases else "ending")

    def enter(self, name: str) -> None:
        """From now on it is this phase."""
        if self._phases:
            self._phases[-1] = name
        self._set(name)
        if name == self._plan.get("phase"):
            self._seen += 1
            if self._seen == self._plan["occurrence"]:
                self._arm()

    def _arm(self) -> None:
        self._armed = True
        if self._plan["mode"] == "instant":
            threading.Thread(target=self._kill_later, args=(self._plan["amount"] / 1000,), daemon=True).start()

    def _kill_later(self, seconds: float) -> None:
        time.sleep(seconds)
        self._kill()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _is_due(self) -> bool:
        if not self._armed:
            return False
        self._left -= 1
        return self._left < 0

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") or not arguments:
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self._place) and self._is_due():
            self._kill()

    def _watch_writes(self) -> None:
        killer, opened = self, Path.open

        class Half:
            """A file, of which a write may be the last."""

            def __init__(self, file: Any):
                self._file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def __enter__(self) -> "Half":
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

            def write(self, data: Any) -> int:
                if killer._is_due():
                    self._file.write(memoryview(data)[: len(data) // 2])
                    self._file.flush()
                    killer._kill()
                return self._file.write(data)

        def open_to_watch(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = opened(path, mode, *arguments, **options)
            return Half(file) if mode in ("xb", "wb", "ab") else file

        Path.open = open_to_watch  # type: ignore[method-assign,assignment]


def _around(killer: Killer, owner: Any, name: str, phase: str) -> None:
    """Let `owner.name` be a phase."""
    act: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(act)
    def within(*arguments: Any, **options: Any) -> Any:
        with killer.phase(phase):
            return act(*arguments, **options)

    setattr(owner, name, within)


def _before(killer: Killer, owner: Any, name: str, phase: str) -> None:
    """Let a phase begin when `owner.name` is called."""
    act: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(act)
    def within(*arguments: Any, **options: Any) -> Any:
        result = act(*arguments, **options)
        killer.enter(phase)
        return result

    setattr(owner, name, within)


def cache(tables: dict[str, Any], plan: dict[str, Any], board: str) -> int:
    """Scan and encode a recipe's dataset, and write its low job into the work folder."""
    work = Path(tables["work"])
    killer = Killer(plan, Path(board), work)
    _around(killer, pipeline, "cache_latents", "caching latents")
    _around(killer, pipeline, "cache_text", "caching text")
    recipe, display = recipe_from_tables(tables, work), Display(io.StringIO())
    with killer.phase("scanning"):
        infos = pipeline.check_recipe(recipe)
        dataset = pipeline.scan(recipe, display, report=False)
    cached = pipeline.cache(recipe, dataset, display)
    job = pipeline.jobs(recipe, infos, cached)["low"]
    (work / "low.json").write_text(job_to_json(job), encoding="utf-8")
    return 0


def train(runs: str, job: str, plan: dict[str, Any], board: str) -> int:
    """Train a job among `runs`, as node and command line do it; the worker's exit code."""
    killer = Killer(plan, Path(board), Path(runs))
    phases = [
        (run_plan.RunPlan, "load", "loading the model"),
        (run, "write_validation", "validation"),
        (run.SaveCheckpoint, "save", "checkpoint"),
        (previews.Preview, "make", "preview"),
        (run, "save_lora", "LoRA"),
        (RunFolder, "write_result", "result"),
        (Trainer, "train", "first step"),
    ]
    for owner, name, phase in phases:
        _around(killer, owner, name, phase)
    _before(killer, run.LogStep, "__call__", "steps")
    with killer.phase("claiming"):
        claimed = claim.claim_run(Path(runs), job_from_json(job))
    return worker.train(claimed.folder.path)
