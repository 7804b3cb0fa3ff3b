"""Context parallel on two GPUs, through NCCL: the velocity and the gradients of one GPU, with every kind of attention."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "context_parallel.py"


@pytest.mark.parametrize("mode", ["off", "kernels"])
@pytest.mark.parametrize("attention", ["flash", "cudnn"])
def test_two_gpus_are_one(mode, attention):
    """What the benchmark compares before it takes times, of a small model: it ends with an error where they differ."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    options = ["--check", "--mode", mode, "--attention", attention]
    found = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-4000:]
    assert "the same" in found.stdout
