"""The command line: `wantrain COMMAND ...`, the same training core without ComfyUI."""

import argparse
import importlib
import io
import logging
import sys
import traceback
from collections.abc import Sequence

from ..errors import WanTrainError, advised
from ..launch.exits import EXIT_ERROR, EXIT_INTERRUPTED
from ..offline import stay_offline
from .advice import ADVICE

# Name -> what it does. A command's file is imported when the command is used: some take seconds.
COMMANDS = {
    "run": "the simple way: asks for a dataset, a title and the models, caches, trains both experts of Wan 2.2",
    "scan": "say what a dataset folder holds, and everything that would be dropped, cut or changed",
    "cache": "encode what is new or changed in a recipe's dataset",
    "train": "train a recipe, a job or a run folder, or go on with it",
    "merge": "write the LoRA files that you keep: checked, merged, named and labelled",
    "preview": "make a video without and with a LoRA, from the same seed, side by side",
    "download": "fetch the model files from Hugging Face into a models folder, checked",
    "link": "make the installed node pack known to a ComfyUI",
    "doctor": "say what is installed, which GPUs and models there are, and what fits",
}
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code. What the user can mend ends with one sentence, not a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) != ["download"]:
        stay_offline()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return options.run(options)
    except WanTrainError as error:
        log.error("%s", advised(error, ADVICE))
        log.debug("%s", traceback.format_exc())
        return EXIT_ERROR
    except KeyboardInterrupt:
        log.error("interrupted")
        return EXIT_INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wantrain", description="Train LoRAs for Wan 2.1 / 2.2 without ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = arguments[0] if arguments else ""
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f".commands.{name}", __package__)
            command.description = (module.__doc__ or "").partition(": ")[2]
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(arguments)
