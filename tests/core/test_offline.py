"""Nothing is downloaded but by `wantrain download`: a guard ends every process that looks for another machine."""

import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.launch.ahead import worker_environment
from wan_train.core.offline import OFFLINE, stay_offline
from wan_train.core.settings.precision import PRECISIONS
from wan_train.core.wan.recovery import file_identity
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tools import headless_demo

PACK = Path(__file__).resolve().parents[2]

# Loaded by every Python that is started with it on its path. Exit code 99: the network was asked for.
GUARD = """
import os, socket, sys

if "GUARDED" in os.environ:
    with open(os.environ["GUARDED"], "a") as told:
        told.write(" ".join(sys.orig_argv) + "\\n")

def guard(event, arguments):
    local = event == "socket.connect" and arguments[0].family not in (socket.AF_INET, socket.AF_INET6)
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") or (event == "socket.connect" and not local):
        os.write(2, f"NETWORK: {event} {arguments[1:]}\\n".encode())
        os._exit(99)

sys.addaudithook(guard)
"""
# What bitsandbytes looks for: a package that fetches code.
KERNELS = """
import socket

def get_kernel(*_, **__):
    socket.getaddrinfo("huggingface.co", 443)
"""


@pytest.fixture
def environment(tmp_path):
    """Of processes that are guarded, and so are those that they start."""
    guard = tmp_path / "guard"
    (guard / "kernels").mkdir(parents=True)
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    (guard / "kernels" / "__init__.py").write_text(KERNELS, encoding="utf-8")
    found = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    return found | {"PYTHONPATH": str(guard), "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def guarded(environment):
    """Runs Python code in a guarded process that knows the pack; what it printed."""

    def run(code: str, *, code_of_exit: int = 0) -> str:
        start = f"import sys; sys.path.insert(0, {str(PACK)!r}); import wantrain; wantrain.load_pack()\n"
        result = subprocess.run(
            [sys.executable, "-c", start + code], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == code_of_exit, result.stderr[-2000:]
        return result.stdout + result.stderr

    return run


def test_the_guard_sees_what_would_be_fetched(guarded):
    said = guarded("import kernels; kernels.get_kernel('x')", code_of_exit=99)
    assert "NETWORK: socket.getaddrinfo" in said


def test_every_package_is_imported_offline(guarded):
    """As the training process and the commands import them; with an answer of the hub's library to prove it."""
    code = """
from wan_train.core.offline import stay_offline
stay_offline()
from wan_train.core.adapters.peft_hooks import import_adapters
import_adapters()
import importlib
from wan_train.core.cli.machine import _PACKAGES
for _, module, attribute, _ in _PACKAGES:
    try:
        getattr(importlib.import_module(module), attribute or "__name__")
    except ImportError as error:
        print(f"not here: {error}")
from wan_train.core.memory.precisions.nf4 import nf4
try:
    import huggingface_hub
    print("hub offline:", huggingface_hub.constants.HF_HUB_OFFLINE)
    try:
        huggingface_hub.hf_hub_download("a/b", "c")
    except Exception as error:
        print("refused:", type(error).__name__)
except ImportError:
    print("hub offline: True, refused: it is not installed")
print("kernels:", importlib.util.find_spec("kernels"))
"""
    said = guarded(code)
    assert "hub offline: True" in said
    assert "refused:" in said
    assert "kernels: None" in said


def write_recovery_adapter(path: Path) -> Path:
    """A frozen LoRA for two layers of the miniature model, as AI-Toolkit has them."""
    factors = {}
    for layer in ("blocks.0.self_attn.q", "blocks.1.self_attn.q"):
        factors[f"diffusion_model.{layer}.lora_A.weight"] = torch.full((2, SIZE.dim), 0.01)
        factors[f"diffusion_model.{layer}.lora_B.weight"] = torch.full((SIZE.dim, 2), 0.01)
    save_file(factors, path)
    return path


def test_a_run_of_each_precision_stays_offline(guarded, job, tmp_path):
    """Through the command that a training process is started with, and the optimizer that is bitsandbytes' own."""
    from dataclasses import replace

    from wan_train.core.train.run_folder import RunFolder

    adapter = write_recovery_adapter(tmp_path / "ara.safetensors")
    folders = []
    for number, precision in enumerate(PRECISIONS):
        optimizer = replace(job.optimizer, name="adamw8bit" if precision == "bf16" else "adamw")
        model = replace(job.model, precision=precision)
        if precision == "ara":
            model = replace(model, recovery_adapter=str(adapter), recovery_identity=file_identity(adapter))
        one = replace(job, model=model, optimizer=optimizer)
        folder = RunFolder(tmp_path / "runs" / f"{number}")
        folder.path.mkdir(parents=True)
        folder.write_job(replace(one, loop=replace(job.loop, steps=1)))
        folders.append(str(folder.path))
    pytest.importorskip("bitsandbytes")
    code = f"""
import os
from wan_train.core.cli.main import main
kept, write = os.pipe()
os.dup2(kept, 0)
for folder in {folders!r}:
    assert main(["train", folder, "--follow-stdin"]) == 0, folder
"""
    guarded(code)
    assert all(RunFolder(Path(folder)).finished_lora(1) for folder in folders)


@pytest.mark.grid(2, "the demo without ComfyUI")
def test_the_demo_without_comfyui_stays_offline(environment, tmp_path, monkeypatch):
    """`python run.py demo --headless` in miniature: the command line, and every process that it starts for encoding, for
    training either expert and for the video."""
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = tmp_path / "processes.txt"
    monkeypatch.setenv("GUARDED", str(told))
    (tmp_path / "clips").mkdir()
    for path in (PACK / "nano" / "datasets" / "dive").glob("dive_00.*"):
        shutil.copy(path, tmp_path / "clips")
    folder = (f"dataset.folder={tmp_path / 'clips'}", "dataset.held_out=0")
    changes = ("loop.steps=1", "loop.batch_size=1", "device=cpu", *folder)
    headless_demo.run(headless_demo.command_line(Path(sys.executable), PACK), PACK, tmp_path / "base", changes=changes)
    commands = [line.partition("wantrain.py ")[2] for line in told.read_text(encoding="utf-8").splitlines()]
    started = Counter(command.split()[0] for command in commands if command)
    assert started == {"train": 3, "cache": 1, "preview": 1}  # the command line's own, and one for each expert
    assert sum("--follow-stdin" in command for command in commands) == 2


def test_a_training_process_is_started_offline_whatever_the_surroundings_say():
    environment = worker_environment({"HF_HUB_OFFLINE": "0", "PATH": "x"})
    assert OFFLINE.items() <= environment.items()
    assert environment["PATH"] == "x"


@pytest.mark.parametrize("command", ["doctor", "download"])
def test_only_the_download_may_go_out(guarded, command):
    said = guarded(
        f"""
import os
from wan_train.core.cli.main import main
try:
    main([{command!r}, "--help"])
except SystemExit:
    print("offline:", os.environ.get("HF_HUB_OFFLINE"))
"""
    )
    assert f"offline: {'1' if command == 'doctor' else None}" in said


def test_in_comfyui_nothing_of_it_is_set_nor_imported():
    """Other packs may download: our nodes neither change the environment nor bring in what would fetch code."""
    used = "\n".join(path.read_text(encoding="utf-8") for path in (PACK / "nodes").glob("*.py"))
    assert "stay_offline" not in used
    assert "import_adapters" not in used
    assert "bitsandbytes" not in [
        line.split()[1] for line in used.splitlines() if line.startswith(("import ", "from "))
    ]


def test_nobody_is_told_to_install_what_is_kept_out(caplog, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "kernels", None)
    stay_offline()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load. Please make sure you already `pip install kernels` and the kernels >= %s", "0.11.1")
    logger.warning("another warning")
    assert caplog.messages == ["another warning"]
