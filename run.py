"""The commands of this folder. Needs Python 3.10 or newer and nothing else.

python run.py demo        trains a LoRA on drawn clips with miniature models and samples with it, in a real ComfyUI
python run.py test        runs the tests and the linters; with another PyTorch or peft: --torch oldest, --peft oldest
python run.py campaign    tries hard to make runs lose work: kills, full disks, damaged and hostile files
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent
CHECKS = ("lint", "format", "types", "page", "tests")  # what `test` runs


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; everything after `--` goes to pytest."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train and sample in a real ComfyUI on the CPU",
        description="Finds a ComfyUI (COMFYUI_PATH, the one around this pack, ~/comfy/ComfyUI) or fetches one, starts "
        "it on the CPU with everything it reads and writes in .demo/, and runs example_workflows/demo.json there: "
        "dataset, caches, one LoRA per expert, the merged pair, a video without and with it. What is missing is "
        "installed into .venv/ of this folder; your own ComfyUI and its Python stay as they are.",
    )
    demo.add_argument("--exit", action="store_true", help="stop ComfyUI at the end, also in a terminal")
    demo.add_argument("--fresh", action="store_true", help="remove the results of an earlier demo first")
    demo.add_argument("--headless", action="store_true", help="the same job by the command line, without ComfyUI")
    test = commands.add_parser(
        "test",
        help="run the tests and the linters",
        description="Runs ruff, pyright and pytest, the latter also against a real ComfyUI on the CPU (found or "
        "fetched as for the demo), and where Node.js is installed the checks of the page's JavaScript. Arguments after "
        "-- go to pytest, which is then the only check: "
        "run.py test -- -k name, run.py test -- tests/core/flow",
    )
    test.add_argument(
        "--only",
        action="append",
        choices=CHECKS,
        metavar="CHECK",
        help=f"{', '.join(CHECKS)}; may be given several times",
    )
    other = test.add_mutually_exclusive_group()
    other.add_argument("--torch", metavar="VERSION", help="a subset with this PyTorch: oldest, newest or a number")
    other.add_argument(
        "--peft", metavar="VERSION", help="the tests of adapters with this peft: oldest, newest or a number"
    )
    test.add_argument("pytest_args", nargs="*", help="arguments for pytest, after --")
    campaign = commands.add_parser(
        "campaign",
        help="attack runs, files and jobs many times over",
        description="The long form of a campaign (tests/campaigns/README.md): run.py campaign kills --tries 1000 --seed 1",
    )
    campaign.add_argument("campaign_args", nargs=argparse.REMAINDER, help="name, --tries, --seed")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < (3, 10):  # noqa: UP036 - run.py is started by whatever Python there is
        print(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 1
    options = parse(arguments)
    # Processes start several times here: let Python keep what it compiles, whatever the surroundings say.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("UV_COMPILE_BYTECODE", "1")
    if options.command == "demo":
        from tools import demo

        stay = sys.stdin.isatty() and not options.exit
        return demo.main(PACK, stay=stay, fresh=options.fresh, headless=options.headless)
    from tools import checks

    if options.command == "campaign":
        return checks.run_campaign(PACK, options.campaign_args)
    return checks.main(PACK, options.pytest_args, options.only or CHECKS, torch=options.torch, peft=options.peft)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
