"""A run's LoRA, its checkpoints and previews, or any LoRA file, to a repository on Hugging Face."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..errors import ConfigError, RunError
from ..paths import shown
from ..train.partway import checkpoint_lora
from ..train.run_folder import RunFolder
from ..train.sound import refuse_damaged
from ..wan.header import read_header
from .card import MARK, Uploaded, model_card
from .packages import imported
from .run_facts import read_facts

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PRIVATE = ("wantrain.job", "workflow", "prompt", "ss_tag_frequency", "ss_datasets", "ss_dataset_dirs")
_PREVIEWS = 3  # of each run: the newest
_LOGIN = "log in once with `hf auth login`, with a token that may write"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What goes where."""

    to: str  # user/repository
    checkpoints: bool = False
    with_job: bool = False  # leave captions, paths and workflow in the files
    public: bool = False

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.to):
            raise ConfigError(f"--to is '{shown(self.to)}': write USER/NAME, such as ann/my_lora.")


def stage(paths: Sequence[Path], order: Order, folder: Path) -> list[Uploaded]:
    """Put everything that is uploaded into `folder`, as the repository will have it.

    `paths`: run folders, whose LoRA is taken, and LoRA files. ConfigError for what is neither, or for two of one name.
    """
    found = [uploaded for path in paths for uploaded in _staged(path, order, folder)]
    names = [file.name for file in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two of the files are called {twice}: push them one by one, to repositories of their own.")
    card = model_card(order.to.partition("/")[2], [file for file in found if not file.name.startswith("checkpoints/")])
    (folder / "README.md").write_text(card, encoding="utf-8")
    return found


def push(paths: Sequence[Path], order: Order, folder: Path, say: Callable[[str], None]) -> str:
    """Upload, by the login of the package huggingface_hub; the repository's address.

    `folder`: an empty one, for copies. A card that somebody has written or taken over is left as it is. RunError for what
    the hub refuses.
    """
    hub: Any = imported("huggingface_hub")
    if imported("huggingface_hub.constants").HF_HUB_OFFLINE:
        raise ConfigError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set in the environment, so that nothing can be uploaded: "
            "unset it, and push again."
        )
    files = stage(paths, order, folder)
    say(f"{len(files)} LoRA files for {order.to}: {', '.join(file.name for file in files)}")
    if not order.with_job:
        say("their captions, paths and workflow are left out (--with-job keeps them)")
    api = hub.HfApi()
    try:
        api.create_repo(order.to, private=not order.public, exist_ok=True)
        ignored = ["README.md"] if _has_own_card(hub, api, order.to, folder) else None
        api.upload_folder(
            repo_id=order.to,
            folder_path=str(folder),
            commit_message="LoRA trained with ComfyUI-WanTrain",
            ignore_patterns=ignored,
        )
    except Exception as error:  # of the hub, of the network, or no login
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"Hugging Face did not take it ({lines[0][:300]}): {_LOGIN}, and start it again.") from error
    if ignored:
        say("the repository's README.md is left as it is: it was not made here")
    return f"{api.endpoint}/{order.to}"


def _staged(path: Path, order: Order, folder: Path) -> list[Uploaded]:
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return [_copy(path, folder, path.name, order)]
    run = RunFolder(path.resolve())
    if not run.is_there:
        raise ConfigError(f"{shown(path)} is neither a run folder nor a .safetensors file.")
    facts, job = read_facts(run.path), run.read_job()
    lora = run.finished_lora(job.loop.steps)
    steps = [step for step, _ in run.checkpoints()] if order.checkpoints else []
    for step in steps:
        refuse_damaged(run, step)
    if lora is None and not steps:
        raise ConfigError(
            f"{run.path} has no finished LoRA: finish the run, or push its checkpoints with --checkpoints, or one by its file."
        )
    previews = _copy_previews(run.path, folder)
    found = [] if lora is None else [_copy(lora, folder, lora.name, order, facts, previews)]
    for step in steps:
        source = checkpoint_lora(run, step)
        if source is not None:
            name = f"{run.path.name}_step{step}.safetensors"
            target = name if lora is None and step == steps[-1] else f"checkpoints/{name}"
            found.append(_copy(source, folder, target, order, facts, previews if "/" not in target else ()))
    return found


def _copy(
    source: Path, folder: Path, name: str, order: Order, run: Any = None, previews: Sequence[str] = ()
) -> Uploaded:
    """The file as it is, or with the metadata that others need and no more."""
    metadata = dict(read_header(source).metadata)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    private = [key for key in metadata if key in _PRIVATE]
    if order.with_job or not private:
        shutil.copyfile(source, target)
    else:
        for key in private:
            del metadata[key]
        save_file(load_file(source), target, metadata)
    return Uploaded(name=name, metadata=metadata, run=run, previews=previews)


def _copy_previews(run: Path, folder: Path) -> list[str]:
    found: list[str] = []
    for video in sorted((run / "previews").glob("step-*.webp"))[-_PREVIEWS:]:
        name = f"previews/{run.name}_{video.name}"
        (folder / "previews").mkdir(exist_ok=True)
        shutil.copyfile(video, folder / name)
        found.append(name)
    return found


def _has_own_card(hub: Any, api: Any, repository: str, folder: Path) -> bool:
    """Whether the repository has a card that was not made here."""
    if not api.file_exists(repository, "README.md"):
        return False
    path = hub.hf_hub_download(repository, "README.md", endpoint=api.endpoint, local_dir=folder.parent / "before")
    return MARK not in Path(path).read_text(encoding="utf-8", errors="replace")
