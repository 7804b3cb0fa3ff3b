"""What a stranger could send: jobs, run folders, LoRAs and recipes that are wrong in one or two places on purpose."""

import contextlib
import json
import os
import random
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from wan_train.core.adapters.metadata import lora_metadata
from wan_train.core.serial import to_dict
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import DataSpec, Job, ModelSpec
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.train.label import describe_lora
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import SIZE, make_sample
from wan_train.tools.miniature import dit_metadata, umt5, wan_dit, wan_vae
from wan_train.tools.shapes import draw_dataset

HUGE = "<an integer of 5000 digits>"  # written into the text, for Python's own writer refuses it
INTEGERS = (10**12, 10**9 + 1, -1, 0, 2**63, 2**64, 10**30, 10**400, -(10**18), HUGE)
FLOATS = (float("nan"), float("inf"), float("-inf"), 1e308, -1.0, 0.0, 10**400, HUGE)
ODD = (None, [], {}, True, 1.5, "3", "", [[]], {"a": 1}, "x" * 200_000)
TEXTS = ("", "x" * 5000, "\0", "\ud800", "\x1b]0;x\x07", "ü" * 3000, "\u202e", "a\nb")
DEEP = "<brackets>"
RUN_FILES = ("events.jsonl", "worker.log", "result.json", "workflow.json", "job.json", ".lock", "stop")
RUN_FOLDERS = ("checkpoints", "previews", "checkpoints/step-00000001", "checkpoints/step-00000009", "cache")


@dataclass(frozen=True)
class Stage:
    """What all tries share: things that a job may read, and a home that nothing may write to."""

    place: Path
    job: Job
    recipe: dict[str, Any]

    @property
    def shared(self) -> Path:
        """Models, cached samples and a LoRA."""
        return self.place / "shared"

    @property
    def home(self) -> Path:
        """The decoy."""
        return self.place / "home"

    @property
    def lora(self) -> Path:
        """A good LoRA with its job."""
        return self.shared / "good.safetensors"

    def bad_paths(self) -> list[str]:
        """Paths that must not be opened, or lead nowhere."""
        bad, home = self.shared / "bad", self.home
        made = [
            bad / "pipe",
            bad / "pipe.safetensors",
            bad / "socket",
            bad / "loop",
            bad / "folder",
            home / "secret.txt",
        ]
        return [
            *map(str, made), "/dev/zero", "/dev/random", "/dev/stdin", "/proc/self/mem", "/", "", ".", "..", "~/secret.txt",
            "../../home/secret.txt", "\\\\server\\share\\x.safetensors", "\\\\.\\COM1", "//server/x", "x" * 5000, "a\0b",
            "\ud800", "file:///etc/passwd", "http://127.0.0.1/x.safetensors",
        ]  # fmt: skip

    def bad_names(self) -> list[Any]:
        """Names that would leave the folder, or that no file can have."""
        return [
            "../../home/evil", "..", ".", "/", f"{self.home}/evil", "a/b", "a\\b", "..\\evil", "CON", "nul.txt", "COM1.x",
            "name.", "name ", "-rf", "~", "~/evil", "$HOME", "a:b", "C:evil", *TEXTS, *ODD[:6],
        ]  # fmt: skip


def set_up(place: Path) -> Stage:
    """Make what all tries share."""
    shared, home = place / "shared", place / "home"
    for folder in (shared / "bad" / "folder", home / ".ssh", place / "tmp"):
        folder.mkdir(parents=True)
    for name in (".bashrc", ".ssh/authorized_keys", "secret.txt"):
        (home / name).write_text(f"what was in {name}\n", encoding="utf-8")
    _make_bad_files(shared / "bad")
    model = shared / "model.safetensors"
    save_file(wan_dit(SIZE, seed=0), model, metadata=dit_metadata(SIZE))
    save_file(wan_vae(6), shared / "vae.safetensors")
    save_file(umt5(), shared / "umt5.safetensors")
    draw_dataset(shared / "data", clips=0, images=2, size=32, seed=0)
    save_file({"context": torch.zeros(1, SIZE.text_dim)}, shared / "empty.safetensors")
    job = Job(
        name="good",
        stage="low",
        model=ModelSpec(path=str(model), identity=inspect(model).identity, label="wan2.2-t2v-a14b"),
        data=DataSpec(
            samples=(make_sample(shared, "a"), make_sample(shared, "b", shape=(16, 1, 4, 6))),
            empty_text_path=str(shared / "empty.safetensors"),
            empty_text_key="empty",
            text_dim=SIZE.text_dim,
        ),
        adapter=AdapterOptions(rank=2, alpha=2.0),
        timesteps=replace(Job.__dataclass_fields__["timesteps"].default_factory(), sigma_max=0.875),
        loop=LoopOptions(steps=2, checkpoint_every=1, keep_last=2),
        device="cpu",
    )
    recipe = {
        "name": "good",
        "dataset": {"folder": str(shared / "data"), "width": 32, "height": 32},
        "models": {"single": str(model), "vae": str(shared / "vae.safetensors"),
                   "text_encoder": str(shared / "umt5.safetensors")},
        "adapter": {"rank": 2, "alpha": 2.0},
        "loop": {"steps": 2},
        "lora": {"single": "mine"},
        "device": "cpu",
    }  # fmt: skip
    stage = Stage(place, job, recipe)
    write_lora_file(stage.lora, json.dumps(to_dict(job)), job)
    return stage


def _make_bad_files(bad: Path) -> None:
    for name in ("pipe", "pipe.safetensors"):
        os.mkfifo(bad / name)
    (bad / "loop").symlink_to(bad / "loop")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound, contextlib.chdir(bad):
        bound.bind("socket")


def write_lora_file(path: Path, text: str, job: Job) -> None:
    """A LoRA whose metadata holds `text` as its job."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index in range(SIZE.num_layers):
        layer = f"diffusion_model.blocks.{index}.self_attn.q"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(2, SIZE.dim, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(SIZE.dim, 2, generator=generator)
        tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    metadata = lora_metadata(describe_lora(job, step=2)) | {"wantrain.job": text}
    try:
        save_file(tensors, path, metadata=metadata)
    except UnicodeEncodeError:  # which the format can't hold in the raw
        save_file(tensors, path, metadata=metadata | {"wantrain.job": text.encode("utf-8", "replace").decode()})


def spoil(data: dict[str, Any], chance: random.Random, stage: Stage) -> str:
    """Change one place of nested tables, in place; what was changed."""
    table, key = chance.choice(list(_places(data)))
    where = f"{key}"
    action = chance.random()
    if action < 0.06 and isinstance(table, dict):
        table[chance.choice(("extra", "__class__", "path", ""))] = chance.choice(ODD)
        return "an unknown field"
    if action < 0.1 and isinstance(table, dict):
        del table[key]
        return f"no {where}"
    if action < 0.12:
        table[key] = DEEP
        return f"{where}: deep"
    table[key] = _hostile(table[key], str(key), chance, stage)
    return f"{where}: {str(table[key])[:80]!r}"


def _hostile(value: Any, key: str, chance: random.Random, stage: Stage) -> Any:
    if chance.random() < 0.1:
        return chance.choice(ODD)
    if key in ("name", "lora", "high", "low", "single") and isinstance(value, str) and "/" not in value:
        return chance.choice(stage.bad_names())
    if "path" in key or (isinstance(value, str) and "/" in value):
        return chance.choice(stage.bad_paths())
    if isinstance(value, bool):
        return chance.choice(ODD)
    if isinstance(value, int):
        return chance.choice(INTEGERS)
    if isinstance(value, float):
        return chance.choice(FLOATS)
    return chance.choice([*TEXTS, *stage.bad_names()]) if isinstance(value, str) else chance.choice(ODD)


def _places(data: Any) -> "list[tuple[Any, Any]]":
    """(table, key) of every value, inner ones included."""
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    found = [(data, key) for key in keys]
    for key in keys:
        if isinstance(data[key], (dict, list)):
            found += _places(data[key])
    return found


def as_text(data: Any, chance: random.Random) -> bytes:
    """JSON, now and then broken."""
    text = json.dumps(data).replace(json.dumps(HUGE), "9" * 5000).replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000)
    raw = text.encode()
    if chance.random() < 0.1:
        whole = (
            b"",
            b"5",
            b"null",
            b"[" * 100_000,
            b"\xff\xfe" + raw,
            raw[: len(raw) // 2],
            raw[:100] + b"\x80" + raw[100:],
        )
        raw = chance.choice(whole)
    return raw


def plant(folder: Path, chance: random.Random, stage: Stage) -> str:
    """Put a link, a pipe or a folder in the place of something in a run folder; what was done."""
    name = chance.choice((*RUN_FILES, *RUN_FOLDERS, "good_low_noise.safetensors", "checkpoints/.step-1.tmp"))
    path = folder / name
    if (path.parent != folder and os.path.lexists(path.parent)) or path.is_dir():
        return f"{name} as it is"  # something was planted there before
    path.parent.mkdir(exist_ok=True)
    is_folder = name in RUN_FOLDERS
    path.unlink(missing_ok=True)
    target = stage.home / (".ssh" if is_folder else ".bashrc")
    kind = chance.choice(("link", "dangling", "pipe", "hard link", "loop", "other kind", "up"))
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(stage.home / "made_through_a_link")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(stage.home / ".bashrc", path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "up":
        path.symlink_to("../../../home")
    elif is_folder:
        path.write_bytes(b"")
    else:
        path.mkdir()
    return f"{name} is a {kind}"
