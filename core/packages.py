"""The packages that training needs beside ComfyUI's: whether they are there and new enough, without importing them."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ConfigError


@dataclass(frozen=True)
class Need:
    """A package, as pip knows it, and the first version that does: pyproject.toml and requirements.txt say the same."""

    name: str
    minimum: str
    purpose: str
    instead: str = ""  # what does without it


NEEDS = {
    need.name: need
    for need in (
        Need("peft", "0.16", "every training"),
        Need("av", "14.2", "reading clips"),
        Need(
            "bitsandbytes",
            "0.46",
            "the optimizers of 8 bits or in pages, ademamix, and the precision nf4",
            instead=" Or choose the optimizer adamw and the precision int4_svd, which do without.",
        ),
        Need("prodigyopt", "1.1", "the optimizer prodigy", instead=" Or choose the optimizer adamw."),
        Need("schedulefree", "1.4", "the optimizer schedulefree", instead=" Or choose the optimizer adamw."),
        Need("transformers", "4.50", "the optimizer adafactor", instead=" Or choose the optimizer adamw8bit."),
        Need(
            "torchsde",
            "0.2.6",
            "the samplers dpmpp_sde, dpmpp_2m_sde and dpmpp_3m_sde",
            instead=" Or choose the sampler dpmpp_2m.",
        ),
    )
}
ALWAYS = ("peft", "av")


def check_packages(names: Iterable[str] = ALWAYS) -> None:
    """ConfigError with the command to run, if one of these packages is missing or too old. Imports nothing."""
    problems = package_problems(names)
    if problems:
        raise ConfigError(" ".join(problems))


def package_problems(names: Iterable[str] = ALWAYS) -> list[str]:
    """A sentence with the command to run for each of these packages that is missing or too old."""
    found = []
    for need in (NEEDS[name] for name in names):
        version = installed_version(need.name)
        if not version:
            found.append(
                f"The package {need.name}, needed for {need.purpose}, is not installed: {advice(need.name)}{need.instead}"
            )
        elif release(version) < release(need.minimum):
            found.append(
                f"The package {need.name} has version {version}, but {need.purpose} needs {need.minimum} or newer: "
                f"{advice(need.name)}{need.instead}"
            )
    return found


def unusable(name: str, error: Exception) -> ConfigError:
    """The error for a package that is installed but can't be imported."""
    problems = package_problems([name])
    why = (str(error).splitlines() or [type(error).__name__])[0]
    sentence = f"The package {name} can't be imported ({why}): {advice(name)}{NEEDS[name].instead}"
    return ConfigError(problems[0] if problems else sentence)


def advice(*names: str) -> str:
    """What to do about packages."""
    return f"run {pip_command('--upgrade', *names)} and start again."


def pip_command(*arguments: str) -> str:
    """A command line that installs into this very Python, which is ComfyUI's: python_embeded in the portable version."""
    flags = ["-s"] if sys.flags.no_user_site else []  # what lies in the user's own folder is not seen by this Python
    parts = [sys.executable, *flags, "-m", "pip", "install", *arguments]
    return subprocess.list2cmdline(parts) if os.name == "nt" else shlex.join(parts)


def installed_version(name: str) -> str:
    """As the package's metadata has it; "" if it is not installed, or has none."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing: those of 0.20.0rc1, 0.20.0.dev5 and v0.20.0+local are those of 0.20."""
    try:
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return _trimmed(_leading_numbers(version))
    try:
        return _trimmed(Version(version).release)
    except InvalidVersion:
        return _trimmed(_leading_numbers(version))


def _leading_numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _trimmed(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Without zeros at the end: 0.20.0 is 0.20."""
    while numbers and not numbers[-1]:
        numbers = numbers[:-1]
    return numbers
