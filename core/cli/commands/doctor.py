"""`wantrain doctor`: say what is installed, which GPUs and models there are, what is missing, and what fits."""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import torch

from ...packages import pip_command
from ...plan.card import Card, measure_card
from ..fits import what_fits
from ..inventory import FoundModel, list_models
from ..machine import Machine, Package, look_at_machine
from ..report import as_text, make_report

GIB = 2**30
TORCH_WITH_CUDA = ("--force-reinstall", "torch", "--index-url", "https://download.pytorch.org/whl/cu128")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder to look for Wan models in (safetensors, GGUF), such as ComfyUI/models; may be given again",
    )
    add("--work", type=Path, default=Path(), metavar="DIR", help="folder for runs and caches (the current one)")
    add("--json", action="store_true", help="print everything as JSON, sizes in bytes")
    add(
        "--report",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="RUN",
        help="print what helps in an issue: card, versions, what works and, for a run folder, what its plan promised and what "
        "it took; without paths, names of files and captions",
    )


def run(options: argparse.Namespace) -> int:
    """Print the findings; 0 if training is possible, be it of miniature models alone."""
    if options.report is not None:
        report = make_report(options.report if options.report != Path() else None)
        sys.stdout.write((json.dumps(report, indent=1) if options.json else as_text(report)) + "\n")
        return 0
    found: list[FoundModel] = []
    others: Counter[str] = Counter()
    for folder in options.models:
        models, rest = list_models(folder)
        found += models
        others += rest
    machine = look_at_machine(options.work)
    wrong = problems(machine, found if options.models else None)
    advice = remedies(machine)
    possible = what_is_possible(machine, found if options.models else None)
    if options.json:
        data = {
            "machine": dataclasses.asdict(machine),
            "models": [dataclasses.asdict(model) for model in found],
            "other_files": dict(others),
            "problems": wrong,
            "advice": advice,
            "possible": "" if wrong else possible,
        }
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        card = _card(machine) if any(model.is_trainable for model in found) else None
        lines = [
            *_machine_lines(machine),
            *_model_lines(machine, found, others, card),
            *_verdict(wrong, advice, possible),
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


def problems(machine: Machine, models: list[FoundModel] | None) -> list[str]:
    """Why training is not possible, one sentence each; [] if it is. models None: nobody asked for them."""
    wrong = []
    for package in machine.packages:
        if package.is_required and not package.works:
            state = f"cannot be imported ({package.problem})" if package.version else "is not installed"
            wrong.append(f"{package.name} {state}.")
    if models is not None and not any(model.is_trainable for model in models):
        wrong.append("No Wan model that can be trained was found in the folders given.")
    return wrong


def what_is_possible(machine: Machine, models: list[FoundModel] | None) -> str:
    """Which models this machine can train, where nothing is missing. models None: nobody asked for them."""
    if not machine.gpus:
        return "Miniature models can be trained here, for trying things out: Wan's own models need an NVIDIA GPU."
    if models is not None and not any(model.is_trainable and not model.is_miniature for model in models):
        return "Training is possible, but the only models found are miniatures, for trying things out: download one of Wan's."
    return "Training is possible."


def remedies(machine: Machine) -> list[str]:
    """What to do about everything that is missing, required or not, one line each with its command."""
    lines = []
    for purpose in dict.fromkeys(package.needed_for for package in machine.packages):
        group = [package for package in machine.packages if package.needed_for == purpose]
        absent = [package.name for package in group if not package.version]
        broken = [package.name for package in group if package.problem]
        if absent:
            lines.append(f"for {purpose}: {pip_command(*absent)}")
        if broken:
            lines.append(f"for {purpose}: {pip_command('--force-reinstall', *broken)}")
    if machine.has_nvidia_driver and not machine.cuda:
        lines.append(f"to use the NVIDIA GPU, which this torch cannot: {pip_command(*TORCH_WITH_CUDA)}")
    if not (machine.triton and machine.compiler):
        lines.append(f"for compiled training: {_compile_advice(machine)}")
    return lines


def _compile_advice(machine: Machine) -> str:
    parts = []
    if not machine.triton:
        name = "triton-windows" if machine.system.startswith("Windows") else "triton"
        parts.append(pip_command(name))
    if not machine.compiler:
        parts.append("install a C++ compiler (Linux: g++; Windows: Build Tools for Visual Studio)")
    return ", and ".join(parts)


def _machine_lines(machine: Machine) -> list[str]:
    memory = machine.memory
    lines = [f"Python {machine.python}, {machine.system}", "", "Packages"]
    lines += [f"  {package.name:<14} {_state(package)}" for package in machine.packages]
    triton, compiler = machine.triton or "not installed", machine.compiler or "not found"
    lines += [f"  for compiled training: triton {triton}, C++ compiler {compiler}", "", "Machine"]
    for gpu in machine.gpus:
        text = f"  GPU {gpu.index}: {gpu.name}, {_gib(gpu.free_bytes)} free of {_gib(gpu.total_bytes)}"
        lines.append(f"{text}, compute capability {gpu.capability}")
    lines += _links(machine)
    if not machine.gpus:
        built = f"CUDA {machine.cuda}" if machine.cuda else "no CUDA"
        lines.append(f"  no GPU (torch was built with {built}): the CPU trains miniature models only")
    known = f"{_gib(memory.available_bytes)} available of {_gib(memory.total_bytes)}"
    lines.append(f"  memory: {known if memory.total_bytes else 'not known here (install psutil)'}")
    lines.append(f"  disk: {_gib(machine.free_disk_bytes)} free for {machine.work_folder}")
    return lines


def _links(machine: Machine) -> list[str]:
    """How several GPUs reach each other, which decides how fast one run over them is."""
    if len(machine.gpus) < 2:
        return []
    missing = [
        f"{a.index} and {b.index}" for a in machine.gpus for b in machine.gpus[a.index + 1 :] if a.index not in b.peers
    ]
    if not missing:
        return ["  links: every GPU reaches the memory of every other directly (NVLink or PCIe)"]
    return [f"  links: no direct way between the GPUs {', '.join(missing)}: they talk by way of main memory"]


def _card(machine: Machine) -> Card | None:
    """The GPU with the most free memory, measured; None where there is none."""
    if not machine.gpus:
        return None
    gpu = max(machine.gpus, key=lambda gpu: gpu.free_bytes)
    return measure_card(torch.device("cuda", gpu.index))


def _state(package: Package) -> str:
    need = f"needed for {package.needed_for}"
    if not package.version:
        return f"not installed, {need}"
    return f"{package.version}, cannot be imported: {package.problem}; {need}" if package.problem else package.version


def _model_lines(
    machine: Machine, models: list[FoundModel], others: Counter[str], card: Card | None = None
) -> list[str]:
    lines = ["", "Models"] if models or others else []
    if models and card:
        lines.append(f"  what a LoRA of rank 16 would take on the {card.name}, as predicted from what it can do now:")
    for model in models:
        size = f", {model.size}" if model.size else ""
        can = ", which can be trained" if model.is_trainable else ""
        lines.append(f"  {model.path}: {model.label}{size}{can}")
        fits = _fit(model, card, compiled=bool(machine.triton and machine.compiler))
        lines += [f"    {text}" for text in (model.problem, *fits) if text]
    if others:
        counts = ", ".join(f"{count} x {label}" for label, count in others.most_common())
        lines.append(f"  other files: {counts}")
    return lines


def _fit(model: FoundModel, card: Card | None, *, compiled: bool) -> list[str]:
    """What its training would take."""
    if not model.is_trainable:
        return []
    lines = [f"weights while training, in bf16 or as a GGUF file holds them: {_gib(model.weight_bytes)}"]
    return [*lines, *what_fits(Path(model.path), card, compiled=compiled)] if card else lines


def _verdict(wrong: list[str], advice: list[str], possible: str) -> list[str]:
    lines = ["", "To install", *(f"  {line}" for line in advice)] if advice else []
    if wrong:
        return [*lines, "", "Training is not possible:", *(f"  {problem}" for problem in wrong)]
    return [*lines, "", possible]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
