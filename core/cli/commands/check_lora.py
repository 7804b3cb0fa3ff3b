"""`wantrain check-lora`: say why a LoRA has no effect: look at its file, its base, and what a workflow does with it."""

import argparse
import json
import logging
import sys
from pathlib import Path

from ...devices import resolve_device
from ...lora_check.graph import read_graph
from ...lora_check.report import Check, check_lora
from ...wan.checkpoint import inspect
from ..advice import ADVICE
from ..loras import check_files, lora_path

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("file", type=lora_path, metavar="FILE", help="the LoRA, of any trainer, or a checkpoint's folder")
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="its base: the change beside the weights, and its effect on fixed noise",
    )
    add("--workflow", type=Path, metavar="FILE", help="a workflow that should use it (.json, saved or exported)")
    add("--device", default="auto", help="where the model runs: auto, cpu, cuda:0, ... (%(default)s)")
    add("--json", action="store_true", help="print everything as JSON")


def run(options: argparse.Namespace) -> int:
    """Print what was found; 0 if nothing stands in the way of its effect."""
    check_files(options.file, *filter(None, (options.model, options.workflow)))
    check = check_lora(
        options.file,
        base=inspect(options.model) if options.model else None,
        workflow=read_graph(options.workflow) if options.workflow else None,
        device=resolve_device(options.device) if options.model else None,
        progress=log.info,
        advice=ADVICE,
    )
    text = json.dumps(_data(check), indent=2) if options.json else "\n".join(check.lines())
    sys.stdout.write(text + "\n")
    return 0 if check.is_well else 1


def _data(check: Check) -> dict[str, object]:
    on_base = check.on_base
    return {
        "verdict": check.verdict,
        "findings": [
            {"weight": f.weight.name.lower(), "sentence": f.sentence, "remedy": f.remedy} for f in check.findings
        ],
        "layers": [vars(layer) for layer in check.layers],
        "by_block": on_base.by_block if on_base else {},
        "effect": {f"{sigma:g}": share for sigma, share in on_base.effect.items()} if on_base else {},
        "uses": list(check.uses),
    }
