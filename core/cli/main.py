"""The command line: `wantrain COMMAND ...`, the same training core without ComfyUI."""

import argparse
import difflib
import gc
import importlib
import io
import keyword
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from ..errors import WanTrainError, advised
from ..launch.ahead import WAITS, await_folder, dismiss, start_ahead
from ..launch.exits import EXIT_CODES, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE
from ..offline import stay_offline
from ..paths import shown
from ..processes import postpone_collections, resume_collections
from .advice import advice_of

# Name -> what it does. A command's file is imported when the command is used: some take seconds.
COMMANDS = {
    "run": "train both experts of Wan 2.2: asks for a dataset, a name and the model files",
    "train": "train a recipe, a job or a run folder, or go on with it",
    "scan": "say what a dataset folder holds, and what would be dropped, cut or changed",
    "caption": "write captions with a local model, where files of a dataset have none",
    "look": "write a page that shows each frame and caption as the model will see it, and what looks wrong",
    "timesteps": "say how often each noise level will be trained, and draw it",
    "cache": "encode the pictures, clips and captions of a recipe, so that training starts at once",
    "preview": "make a video without and with a LoRA, from the same seed, side by side",
    "import": "make a recipe and a workflow of the files of musubi-tuner, AI-Toolkit, SimpleTuner or diffusion-pipe",
    "log": "show a run in TensorBoard, on Weights & Biases, or tell a webhook of it",
    "push": "upload a run's LoRA, or a file, to Hugging Face, with a model card",
    "merge": "write the LoRA files to keep: checked, merged, named and labelled; or merge several LoRAs into one",
    "change": "resize a LoRA, leave out blocks, or write it in the names of another program",
    "split": "make two files of a LoRA file that holds both experts of Wan 2.2",
    "extract": "make a LoRA of the difference between a fine-tuned model and its base",
    "fold": "add LoRAs to a model for good, and write the model",
    "check-lora": "say why a LoRA has no effect: its file, its base, and what a workflow does with it",
    "checkpoints": "list the checkpoints of a run with their held-out loss and a score, and say which is best",
    "average": "average the checkpoints of a run into one LoRA",
    "download": "fetch the model files from Hugging Face into a models folder, checked",
    "doctor": "say what is installed, which GPUs and models there are, and what fits",
    "link": "make the installed node pack known to a ComfyUI",
}
FIRST_STEPS = """First steps:
  wantrain doctor --models ComfyUI/models      is everything there?
  wantrain run --dataset my_pictures           answer the questions, and train
  wantrain run --write job.toml ...            or write a recipe to edit,
  wantrain train job.toml                      and train it; the same command goes on after a stop

`wantrain COMMAND --help` tells the options of a command."""
FIRST_COMMANDS = ("doctor", "download", "run", "train", "preview")
# What others call a command, or a part of one: the right one, as it is typed.
OTHER_NAMES = {
    "resize": "change FILE --rank 16 --out FOLDER",
    "convert": "change FILE --key-style kohya --out FOLDER",
    "halves": "split FILE --out FOLDER",
    "strip": "change FILE --drop-blocks 0-9 --out FOLDER",
    "check": "check-lora FILE, or scan FOLDER",
    "inspect": "check-lora FILE",
    "encode": "cache RECIPE",
    "generate": "preview --prompt TEXT",
    "resume": "train RUN_FOLDER",
    "best": "checkpoints RUN_FOLDER",
    "ema": "average RUN_FOLDER --out FILE",
    "upload": "push",
    "install": "link",
}
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code. What the user can mend ends with one sentence, not a traceback."""
    if arguments is None:  # the process is this command's own
        postpone_collections()
        arguments = sys.argv[1:]
    if list(arguments[:1]) not in (["download"], ["push"]):
        stay_offline()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    if "--follow-stdin" in arguments:
        _write_for_programs()
    if not arguments:
        sys.stderr.write(f"{_first_help()}\n")
        return EXIT_USAGE
    if list(arguments[:2]) == ["train", WAITS]:
        await_folder()
    elif _will_train(arguments):
        start_ahead()
    try:
        return _run(arguments)
    finally:
        dismiss()


def _write_for_programs() -> None:
    """Print in UTF-8 and a line at once: programs read it so, whatever the system's code page and Python's flags are."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _run(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    if not gc.isenabled():
        resume_collections()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return options.run(options)
    except WanTrainError as error:
        log.error("%s", advised(error, advice_of(options.command)))
        log.debug("%s", traceback.format_exc())
        return EXIT_ERROR
    except KeyboardInterrupt:
        log.error("interrupted")
        return EXIT_INTERRUPTED


def _will_train(arguments: Sequence[str]) -> bool:
    """Whether the command, as far as can be seen before it is read, trains what is there, in a process that follows it."""
    is_other = {"-h", "--help", "--follow-stdin", "--nodes"}.intersection(arguments) or "WORLD_SIZE" in os.environ
    return list(arguments[:1]) == ["train"] and len(arguments) > 1 and not is_other


def _first_help() -> str:
    """What stands there where no command is given."""
    lines = "\n".join(f"  {name:<10}{COMMANDS[name]}" for name in FIRST_COMMANDS)
    return (
        "Train LoRAs for the Wan 2.1 and 2.2 video models, without ComfyUI: wantrain COMMAND ...\n\n"
        f"The commands that you need first:\n{lines}\n\n"
        "`wantrain --help` lists all of them, `wantrain COMMAND --help` the options of one."
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="wantrain",
        description="Train LoRAs for the Wan 2.1 and 2.2 video models, without ComfyUI.",
        epilog=f"{FIRST_STEPS}\n\nExit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    chosen = arguments[0] if arguments else ""
    if chosen and not chosen.startswith("-") and chosen not in COMMANDS:
        parser.error(_unknown(chosen))
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == chosen:
            file = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
            module = importlib.import_module(f".commands.{file}", __package__)
            command.description = _description(module.__doc__ or "")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse would show the usage of `wantrain` for those of a command
        commands.choices.get(chosen, parser).error(f"unrecognized arguments: {' '.join(map(shown, unknown))}")
    return options


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), COMMANDS, 1)
    meant = OTHER_NAMES.get(name.lower()) or (near[0] if near else "")
    told = f"you may want: wantrain {meant}" if meant else "wantrain --help lists all"
    return f"there is no command {shown(name)}; {told}"


def _description(docstring: str) -> str:
    """What a command does, by its file: "`wantrain scan`: say ..." becomes "Say ..."."""
    text = docstring.partition(": ")[2].strip()
    return text[:1].upper() + text[1:]
