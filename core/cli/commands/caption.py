"""`wantrain caption`: write captions beside the pictures and clips of a folder that have none, with a local model.

A vision-language model in a folder, as Hugging Face has it, looks at each file (of a clip at some frames) and describes it.
A text that a person wrote or changed is never replaced. Stopped, the same command goes on where it was.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ...captioning.folder import caption_folder
from ...captioning.local_model import LocalModel, check_folder
from ...serial import from_dict
from ...settings.captioning import CaptioningOptions
from ...settings.option import Option, options_of
from ..display import Display

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes: the folder, the model, and each option of captioning."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the dataset folder")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a vision-language model's folder with config.json and safetensors, such as Qwen2.5-VL-3B-Instruct",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0 (default: the first GPU)")
    for item in options_of(CaptioningOptions):
        flag, text = f"--{item.name.replace('_', '-')}", f"{item.help} {item.more}".strip().replace("%", "%%")
        if item.kinds[0] is bool:
            parser.add_argument(flag, dest=item.name, action="store_true", help=text)
        else:
            choices = f" One of: {', '.join(map(str, item.choices))}." if item.choices else ""
            shown = f" (default: {item.default})" if item.default != "" else ""
            parser.add_argument(
                flag, dest=item.name, default=item.default, metavar=item.name.upper(), help=text + choices + shown
            )


def run(options: argparse.Namespace) -> int:
    """Print what was written, and what could not be."""
    values = {item.name: _value(item, getattr(options, item.name)) for item in options_of(CaptioningOptions)}
    settings = from_dict(CaptioningOptions, values, "caption")
    check_folder(options.model)
    display = Display()
    try:
        done = caption_folder(
            options.folder,
            settings,
            lambda: LocalModel(options.model, device=options.device),
            on_file=lambda done, total, _: display.update("captions", done, total),
        )
    finally:
        display.end("captions")
    for note in done.notes:
        log.warning("%s", note)
    lines = [f"{name}: {text}" for name, text in done.written.items()]
    sys.stdout.write("\n".join([*lines, str(done)]) + "\n")
    return 0


def _value(item: Option, given: Any) -> Any:
    return item.read(given) if isinstance(given, str) else given
