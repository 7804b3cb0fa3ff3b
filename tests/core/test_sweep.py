"""What dead processes left half written is removed, and nothing else."""

import os
import subprocess
import sys
import time

import pytest
from wan_train.core.disk import check_writable, write_atomic
from wan_train.core.moving import temporary_sibling
from wan_train.core.processes import this_machine
from wan_train.core.sweep import sweep_temporaries


@pytest.fixture(scope="module")
def dead():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def name(pid, machine=None, kept="x.safetensors", suffix="tmp"):
    return f".{kept}.{pid}.{this_machine() if machine is None else machine}0123abcd.{suffix}"


def age(path, days):
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))


def test_of_the_dead(tmp_path, dead):
    (tmp_path / name(dead)).write_bytes(b"half")
    (tmp_path / name(dead, kept="recipe", suffix="json")).write_bytes(b"half")
    folder = tmp_path / name(dead, kept="step-00000001")
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"half")
    assert len(sweep_temporaries(tmp_path)) == 3
    assert not list(tmp_path.iterdir())


def test_of_the_living_and_of_other_machines(tmp_path, dead):
    """Of a machine that isn't this one it can't be seen who lives, nor of versions that did not name theirs."""
    left = [name(os.getpid()), name(dead, machine="abcdef"), name(dead, machine="")]
    for file in left:
        (tmp_path / file).write_bytes(b"half")
    assert sweep_temporaries(tmp_path) == []
    for file in left:
        age(tmp_path / file, 0.9)
    assert sweep_temporaries(tmp_path) == []
    for file in left:
        age(tmp_path / file, 1.1)
    assert len(sweep_temporaries(tmp_path)) == 3


def test_a_folder_that_will_be_written_to_is_swept(tmp_path, dead):
    (tmp_path / name(dead, kept="write-test")).write_bytes(b"x")
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_names_stay_however_old(tmp_path, dead):
    others = ["x.tmp", ".x.tmp", f".x.{dead}.tmp", f"x.{dead}.{this_machine()}0123abcd.tmp", ".lock", "job.json",
              f".x.{dead}.{this_machine()}0123abcd.safetensors", f".x.{dead}.0123ABCD.tmp"]  # fmt: skip
    for other in others:
        (tmp_path / other).write_bytes(b"whole")
        age(tmp_path / other, 9)
    assert sweep_temporaries(tmp_path, recursive=True) == []
    assert len(list(tmp_path.iterdir())) == len(others)


def test_below_only_when_asked(tmp_path, dead):
    deep = tmp_path / "latents" / "ab"
    deep.mkdir(parents=True)
    (deep / name(dead)).write_bytes(b"half")
    assert sweep_temporaries(tmp_path) == []
    assert sweep_temporaries(tmp_path, recursive=True) == [deep / name(dead)]
    assert sweep_temporaries(tmp_path / "absent", recursive=True) == []


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_are_neither_followed_nor_removed(tmp_path, dead):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name(dead)).write_bytes(b"half")
    place = tmp_path / "place"
    place.mkdir()
    (place / "link").symlink_to(elsewhere)
    (place / name(dead)).symlink_to(elsewhere / name(dead))
    assert sweep_temporaries(place, recursive=True) == []
    assert (elsewhere / name(dead)).exists()
    assert (place / name(dead)).is_symlink()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import wantrain
wantrain.load_pack()
from wan_train.core.disk import write_atomic
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[2]), write)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_it_knows_the_names_that_are_really_written(tmp_path):
    from wan_train.core.launch.ahead import PACK

    path = tmp_path / "a name.with dots.safetensors"
    assert subprocess.run([sys.executable, "-c", KILLED, str(PACK), str(path)], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert sweep_temporaries(tmp_path) == [left]
    alive = temporary_sibling(path)
    alive.write_bytes(b"half")
    write_atomic(path, lambda file: file.write(b"whole"))
    assert sweep_temporaries(tmp_path) == []
    assert {alive, path} == set(tmp_path.iterdir())
