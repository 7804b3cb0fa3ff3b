"""Miniature model files, a few captioned pictures, and recipes over them, for the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.tests import warm
from wan_train.tests.core.launch.material import draw_pictures, recipe_over, write_models

PACK = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("ComfyUI") / "models")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def tables(models, pictures) -> dict:
    """A recipe for both experts, as a file would hold it."""
    return recipe_over(models, pictures)


@pytest.fixture
def recipe(tables, tmp_path):
    return recipe_from_tables(tables, tmp_path)


@pytest.fixture
def wantrain(tmp_path):
    """Runs a command in an empty folder, without a terminal: (exit code, what it said on both streams)."""

    def run(*arguments: object, start: bool = False, **environment: str):
        given = {"cwd": tmp_path, "env": {**os.environ, **environment}}
        if start:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            command = [sys.executable, str(PACK / "wantrain.py"), *map(str, arguments)]
            return subprocess.Popen(command, text=True, **given, **streams)
        result = warm.run(*arguments, in_one=True, **given)
        return result.returncode, result.stdout

    return run
