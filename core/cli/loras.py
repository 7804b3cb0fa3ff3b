"""Arguments of the commands that make LoRA files."""

import argparse
from pathlib import Path

from ..adapters.afterwards import FileOptions
from ..adapters.drafts import KEY_STYLES, PRECISIONS
from ..errors import ConfigError
from ..train.checkpoints import ADAPTER, AVERAGE


def lora_path(text: str) -> Path:
    """A LoRA's file; for the folder of a checkpoint the LoRA inside, the average where the run averages its weights."""
    path = Path(text)
    return next((path / name for name in (AVERAGE, ADAPTER) if (path / name).is_file()), path)


def weighted(text: str) -> tuple[Path, float]:
    """ "FILE=0.8" or "FILE", whose strength is 1. A file whose name holds "=" itself stays whole."""
    name, _, number = text.rpartition("=")
    if not name or Path(text).exists():
        return lora_path(text), 1.0
    try:
        return lora_path(name), float(number)
    except ValueError:
        if Path(name).exists():
            said = f"the strength of {name} is '{number}': write a number, as in {name}=0.8"
            raise argparse.ArgumentTypeError(said) from None
        return Path(text), 1.0


def add_writing(parser: argparse.ArgumentParser, name: str) -> None:
    """--out, --name, --precision, --key-style."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the file, such as ComfyUI/models/loras")
    add("--name", default=name, help="start of the file's name; nothing is overwritten (%(default)s)")
    add("--precision", choices=PRECISIONS, default="bf16", help="number format of the file (%(default)s)")
    add(
        "--key-style",
        choices=KEY_STYLES,
        default="comfyui",
        help="names of the tensors: comfyui (AI-Toolkit's and diffusion-pipe's too), kohya (musubi-tuner's), diffusers"
        " (%(default)s)",
    )


def writing(options: argparse.Namespace) -> FileOptions:
    """Those of `add_writing`."""
    return FileOptions(name=options.name, precision=options.precision, key_style=options.key_style)


def check_files(*paths: Path) -> None:
    """ConfigError for a file that does not exist."""
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist: check its name and folder.")
