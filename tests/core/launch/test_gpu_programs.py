"""What nvidia-smi prints of GPUs and their programs, and how a program is named to a person."""

import getpass
import os
import sys

import pytest
from wan_train.core.launch.gpu_programs import GpuMemory, Program, command_of, parse, read_gpus

MIB = 2**20
GPUS = "GPU-aaaa-1, 3221, 24564\nGPU-bbbb-2, 24000, 24564\nGPU-cccc-3, [N/A], [N/A]\nNo devices were found\n"
PROGRAMS = (
    "GPU-aaaa-1, 4711, 1500, /usr/bin/python3.11\n"
    "GPU-aaaa-1, 4712, 19000, /opt/a, b/main\n"
    "GPU-aaaa-1, 4713, [N/A], C:\\Games\\game.exe\n"
    "GPU-bbbb-2, [N/A], [N/A], [Insufficient Permissions]\n"
    "No running processes found\n"
)


def test_the_one_that_takes_most_comes_first():
    found = parse(GPUS, PROGRAMS)
    assert found == {
        "aaaa-1": GpuMemory(
            3221 * MIB,
            24564 * MIB,
            (
                Program(4712, "/opt/a, b/main", 19000 * MIB),
                Program(4711, "/usr/bin/python3.11", 1500 * MIB),
                Program(4713, "C:\\Games\\game.exe", None),
            ),
        ),
        "bbbb-2": GpuMemory(24000 * MIB, 24564 * MIB),
    }


def test_nothing_is_known_without_nvidia_smi(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert read_gpus() == {}


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_both_questions_are_asked_of_the_program(tmp_path, monkeypatch):
    """A script in the place of nvidia-smi answers each question by its own table, and one it does not know by nothing."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1 $2" in\n'
        '"--query-gpu=uuid,memory.free,memory.total --format=csv,noheader,nounits") echo "GPU-a, 5, 10" ;;\n'
        '"--query-compute-apps=gpu_uuid,pid,used_memory,process_name --format=csv,noheader,nounits") echo "GPU-a, 7, 4, x" ;;\n'
        "esac\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus() == {"a": GpuMemory(5 * MIB, 10 * MIB, (Program(7, "x", 4 * MIB),))}


def test_a_program_is_named_by_what_it_runs():
    pytest.importorskip("psutil")
    named = command_of(Program(os.getpid(), sys.executable, None))
    assert named.startswith(os.path.basename(sys.executable).split(".")[0][:6])  # noqa: PTH119
    assert named.endswith(f"(of {getpass.getuser()})") or "\\" in named  # Windows names the machine, too


def test_a_program_that_cannot_be_seen_has_the_driver_s_name():
    assert command_of(Program(2**22 + 1, "C:\\Games\\game.exe", None)) == "game.exe"
    assert command_of(Program(2**22 + 1, "/usr/bin/python3.11", None)) == "python3.11"
