"""A run on Weights & Biases, by its own package and its own login; with WANDB_MODE=offline it stays on the disk."""

import tempfile
from pathlib import Path
from typing import Any

from ..train.events import Event
from .packages import imported
from .run_facts import RunFacts
from .sink import MEASURED, as_gif, numbers, preview_paths


class WandbRun:
    """One run; resumed, it goes on where it was. ConfigError without the package, and wandb's own errors.

    Sent are the settings, the numbers and the previews: not the captions, the paths, the code or facts of the machine.
    """

    name, drops = "Weights & Biases", True
    kinds = MEASURED

    def __init__(self, project: str, name: str, run: RunFacts) -> None:
        self._wandb = imported("wandb")
        self.key = f"wandb {project}"
        self.is_new = False
        self._folder = run.folder
        private = self._wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            init_timeout=60,
            silent=True,
        )
        self._run = self._wandb.init(
            project=project,
            name=name or run.title,
            id=f"wantrain-{run.identity}",
            resume="allow",
            dir=str(run.folder),
            config=run.settings,
            settings=private,
        )
        self._run.define_metric("*", step_metric="step")

    def take(self, event: Event) -> None:
        """Numbers of steps and validations, and previews."""
        if event["event"] != "preview":
            self._run.log({"step": event["step"], **dict(numbers(event))})
            return
        with tempfile.TemporaryDirectory() as folder:
            videos: dict[str, Any] = {}
            for tag, source in preview_paths(self._folder, event).items():
                path = Path(folder) / f"{tag}-{event['step']:08d}.gif"
                path.write_bytes(as_gif(source)[0])
                videos[tag] = self._wandb.Video(str(path), format="gif")
            self._run.log({"step": event["step"], **videos})

    def flush(self) -> None:
        """wandb sends in a process of its own."""

    def close(self, state: str, /) -> None:
        """The run is over on the page too; one that failed is shown so."""
        self._run.finish(exit_code=1 if state == "error" else 0)
