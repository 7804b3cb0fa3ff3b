"""The wheel holds all of the pack, and its command line runs without ComfyUI and without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent
SHIPPED = ("core", "nodes", "web", "example_workflows", "subgraphs", "locales", "nano")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Site folder with what the wheel installs; built as `python -m build` does it, from a copy."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in SHIPPED:
        shutil.copytree(PACK / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in PACK.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(folder / run.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(site)
    return site


def test_every_file_is_in_it(installed):
    files = [path for name in SHIPPED for path in (PACK / name).rglob("*") if path.is_file()]
    wanted = {path.relative_to(PACK).as_posix() for path in files if "__pycache__" not in path.parts}
    wanted -= {
        f"locales/{language.name}/help.json" for language in (PACK / "locales").iterdir()
    }  # web/docs has the pages
    wanted |= {"__init__.py", "wantrain.py", "requirements.txt"}
    found = {path.relative_to(installed / "wan_train").as_posix() for path in (installed / "wan_train").rglob("*")}
    assert wanted - found == set()
    assert "tests" not in found
    assert [path for path in found if path.endswith("help.json")] == []
    assert "wantrain = wan_train.core.cli.main:main" in next(installed.rglob("entry_points.txt")).read_text()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_the_command_runs_from_it(installed, tmp_path, arguments):
    command = "import sys; from wan_train.core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "usage: wantrain" in run.stdout


def test_a_comfyui_finds_the_pack_through_the_link(installed, tmp_path):
    comfyui = tmp_path / "ComfyUI"
    (comfyui / "custom_nodes").mkdir(parents=True)
    (comfyui / "main.py").touch()
    for _ in range(2):
        command = "import sys; from wan_train.core.cli.main import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        run = subprocess.run(
            [sys.executable, "-c", command, "link", str(comfyui)], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
    link = comfyui / "custom_nodes" / "ComfyUI-WanTrain"
    assert link.resolve() == (installed / "wan_train").resolve()
    assert (link / "nodes" / "extension.py").is_file()
