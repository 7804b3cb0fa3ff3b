"""What this machine has for training: packages, GPUs, memory, disk space, a compiler."""

import importlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..packages import NEEDS, installed_version, package_problems
from ..plan.host import available_ram, total_ram


@dataclass(frozen=True)
class Package:
    """A package that something needs, and what was found of it."""

    name: str  # as pip knows it
    needed_for: str
    is_required: bool
    version: str  # "" if it is not installed
    problem: str = ""  # why it cannot be used though it is installed

    @property
    def works(self) -> bool:
        """Installed, and it can be imported."""
        return bool(self.version) and not self.problem


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees."""

    index: int
    name: str
    capability: str  # compute capability, "9.0"
    total_bytes: int
    free_bytes: int
    peers: tuple[int, ...] = ()  # GPUs whose memory it reaches directly, by NVLink or PCIe


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, within a container's limit; 0 where the system does not tell."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Machine:
    """Everything that was found."""

    python: str
    system: str
    packages: tuple[Package, ...]
    cuda: str  # that torch was built with; "" for none
    gpus: tuple[Gpu, ...]
    has_nvidia_driver: bool
    memory: Memory
    work_folder: str
    free_disk_bytes: int
    compiler: str  # of C++; "" for none
    triton: str  # version; "" for none


_TRAINING, _HEADLESS = "training", "caching and previews without ComfyUI"
# Name for pip, module, an attribute that must be there too, purpose. Most of it comes with ComfyUI.
_PACKAGES = (
    ("torch", "torch", "", _TRAINING),
    ("safetensors", "safetensors.torch", "", _TRAINING),
    ("numpy", "numpy", "", _TRAINING),
    ("pillow", "PIL.Image", "", _TRAINING),
    ("av", "av", "", _TRAINING),
    ("peft", "peft", "", _TRAINING),
    ("bitsandbytes", "bitsandbytes", "", "optimizers of 8 bits, such as adamw8bit"),
    ("prodigyopt", "prodigyopt", "", "the optimizer prodigy"),
    ("schedulefree", "schedulefree", "", "the optimizer schedulefree"),
    ("diffusers", "diffusers", "AutoencoderKLWan", _HEADLESS),
    ("transformers", "transformers", "UMT5EncoderModel", _HEADLESS),
    ("sentencepiece", "sentencepiece", "", _HEADLESS),
)
_COMPILERS = ("cl",) if os.name == "nt" else ("g++", "c++", "clang++")


def look_at_machine(work_folder: Path) -> Machine:
    """Import each package once, ask torch for the GPUs and the system for the rest. Takes some seconds."""
    compilers = [path for name in _COMPILERS if (path := shutil.which(name))]
    return Machine(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()}",
        packages=tuple(
            probe_package(name, module, attribute, purpose) for name, module, attribute, purpose in _PACKAGES
        ),
        cuda=torch.version.cuda or "",
        gpus=_gpus(),
        has_nvidia_driver=shutil.which("nvidia-smi") is not None,
        memory=_memory(),
        work_folder=str(work_folder.absolute()),
        free_disk_bytes=_free_disk(work_folder),
        compiler=compilers[0] if compilers else "",
        triton=installed_version("triton") or installed_version("triton-windows"),
    )


def probe_package(name: str, module: str, attribute: str, purpose: str) -> Package:
    """Look for a package and import what is used of it; whatever goes wrong then is its problem."""
    is_required = purpose == _TRAINING
    version = installed_version(name)
    if not version:
        return Package(name, purpose, is_required, "")
    if name in NEEDS and package_problems([name]):
        return Package(name, purpose, is_required, version, f"{NEEDS[name].minimum} or newer is needed")
    try:
        imported = importlib.import_module(module)
        if attribute:
            getattr(imported, attribute)
    except Exception as error:  # a broken installation raises anything
        lines = str(error).strip().splitlines()
        return Package(name, purpose, is_required, version, lines[0] if lines else type(error).__name__)
    return Package(name, purpose, is_required, version)


def _gpus() -> tuple[Gpu, ...]:
    found, count = [], torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        peers = tuple(k for k in range(count) if k != index and torch.cuda.can_device_access_peer(index, k))
        found.append(Gpu(index, properties.name, capability, total, free, peers))
    return tuple(found)


def _free_disk(folder: Path) -> int:
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _memory() -> Memory:
    try:
        return Memory(total_ram(), available_ram())
    except OSError:  # no /proc/meminfo and no psutil
        return Memory(0, 0)
