"""A GPU that another process has filled is seen by nvidia-smi, and that process is named."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from wan_train.core.launch.free_gpu import FreeGpus, gpu_uuid, least_memory
from wan_train.core.launch.gpu_programs import read_gpus

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or shutil.which("nvidia-smi") is None, reason="needs a GPU and nvidia-smi"
)

CUDA = torch.device("cuda:0")
FILL = """
import sys, torch
free = torch.cuda.mem_get_info(0)[0]
held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda:0")
print("filled", flush=True)
sys.stdin.read()
"""


def test_a_filled_gpu_is_waited_for_and_a_free_one_is_not(job):
    job = replace(job, model=replace(job.model, precision="bf16"))
    total = read_gpus()[gpu_uuid(CUDA)].total
    left = least_memory(job, CUDA, total) // 2
    command = [sys.executable, "-c", FILL, str(left)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "filled\n"
        sentence = FreeGpus().first_shortage(job, ["cuda:0"])
        other.communicate("")
    assert sentence.startswith("cuda:0 has ")
    # Within a container the driver may hide processes, or name them by the host's numbers.
    assert f"PID {other.pid}" in sentence or "on it: " in sentence or "does not say by which programs" in sentence
    assert FreeGpus().first_shortage(job, ["cuda:0"]) == ""
