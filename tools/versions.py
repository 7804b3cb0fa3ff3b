"""`run.py test --torch` and `--peft`: a subset of the tests with another version of a package, which is installed for it.

The packages go into a folder of their own, `.versions/`, and nothing that is installed elsewhere changes.
"""

import os
import subprocess
import sys
from pathlib import Path

from .comfyui import SetupError, say
from .environment import CORE_NEEDS, TORCH_CPU_INDEX, create_venv, ensure_python, installer, reachable, venv_python

# What `core/torch_compat.py` and `core/adapters/peft_hooks.py` name, with what fits beside an older one.
TORCH_ENDS = {"oldest": "torch==2.7.0", "newest": "torch"}
PEFT_ENDS = {"oldest": ("peft==0.16.0", "transformers==4.53.3"), "newest": ("peft",)}
TORCH_TESTS = (
    "tests/core/test_torch_compat.py", "tests/core/adapters/test_fused.py", "tests/core/adapters/test_setup.py",
    "tests/core/memory", "tests/core/kernels", "tests/core/wan/test_model.py", "tests/core/train/test_resume.py",
)  # fmt: skip
WITHOUT_HOST = ("-k", "not host")  # its requirements are not here
PEFT_TESTS = (
    "tests/core/adapters/test_setup.py",
    "tests/core/adapters/test_fused.py",
    "tests/core/kernels/test_blocks.py",
)
TEST_TOOLS = ("pytest", "setuptools", "bitsandbytes")


def run_with_torch(pack: Path, version: str, pytest_args: list[str]) -> int:
    """The tests of what PyTorch is asked for, in a virtual environment with this version. Returns the exit status."""
    wanted = TORCH_ENDS.get(version, f"torch=={version}")
    folder = pack / ".versions" / wanted.replace("==", "-")
    python = venv_python(folder)
    if not python.is_file():
        create_venv(folder)
    say(f"Installing {wanted} into {folder}")
    index = _torch_index()
    _install([*installer(python), *index, wanted])
    _install([*installer(python), wanted, *CORE_NEEDS, *TEST_TOOLS, "-r", str(pack / "requirements.txt")])
    return _test(pack, python, pytest_args or [*TORCH_TESTS, *WITHOUT_HOST], {})


def run_with_peft(pack: Path, host: Path | None, version: str, pytest_args: list[str]) -> int:
    """The tests of adapters in the tests' own Python, with this version of peft in front. Returns the exit status."""
    wanted = PEFT_ENDS.get(version, (f"peft=={version}",))
    folder = pack / ".versions" / wanted[0].replace("==", "-")
    python = ensure_python(host, pack, tools=True)
    if not (folder / "peft").is_dir():
        say(f"Installing {' and '.join(wanted)} into {folder}")
        # Without what they need: PyTorch and the rest are those of the tests' Python.
        _install([*installer(python), "--no-deps", "--target", str(folder), *wanted, *_beside(wanted)])
    return _test(pack, python, pytest_args or list(PEFT_TESTS), {"PYTHONPATH": str(folder)})


def _beside(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """What an older transformers needs in versions of its time."""
    return ("tokenizers==0.21.4", "huggingface-hub==0.36.0") if len(wanted) > 1 else ()


def _torch_index() -> list[str]:
    """Only on Linux do the ordinary wheels carry gigabytes of CUDA, which these tests do without where they can."""
    return ["--index-url", TORCH_CPU_INDEX] if sys.platform == "linux" and reachable(TORCH_CPU_INDEX) else []


def _install(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(f"{' '.join(command)} failed: the reason is printed above; mend it and run this again.")


def _test(pack: Path, python: Path, what: list[str], environ: dict[str, str]) -> int:
    command = [str(python), "-m", "pytest", "-c", "tests/pytest.ini", "-q", *what]
    say(f"== {' '.join(command)}")
    # Without a ComfyUI: its requirements are those of a newer PyTorch.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    variables.pop("COMFYUI_PATH", None)
    return subprocess.run(command, cwd=pack, env=variables, check=False).returncode
