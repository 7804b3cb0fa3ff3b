"""Runs `interpreted.py`: on a GPU where there is one, else in Triton's interpreter, which is a choice of a whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
PACK = Path(__file__).resolve().parents[3]

if torch.cuda.is_available():
    from wan_train.tests.core.kernels.interpreted import *  # noqa: F403
else:

    def test_in_tritons_interpreter():
        command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-p", "no:cacheprovider"]
        cases = str(Path(__file__).with_name("interpreted.py"))
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        found = subprocess.run([*command, cases], cwd=PACK, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-1000:]
