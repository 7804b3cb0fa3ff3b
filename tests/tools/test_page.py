"""The checks of the page's JavaScript: where they run, and where they are passed over."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
from wan_train.tools.comfyui import SetupError
from wan_train.tools.page import STAMP, find_npm, list_page_checks


@pytest.fixture
def pack(tmp_path):
    (tmp_path / "package-lock.json").write_text("{}", encoding="utf-8")
    (tmp_path / "node_modules").mkdir()
    return tmp_path


def put_npm(folder: Path, status: int) -> dict[str, str]:
    """A program called npm that ends with `status` and writes down what it was asked; the environment that finds it."""
    if os.name == "nt":
        (folder / "npm.cmd").write_text(f"@echo %* >> {folder / 'asked'}\r\n@exit /b {status}\r\n", encoding="utf-8")
    else:
        program = folder / "npm"
        program.write_text(f'#!/bin/sh\necho "$@" >> {folder / "asked"}\nexit {status}\n', encoding="utf-8")
        program.chmod(0o755)
    return {"PATH": str(folder), "SYSTEMROOT": os.environ.get("SYSTEMROOT", ""), "PATHEXT": ".CMD"}


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def test_without_node_a_sentence(pack, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert find_npm(pack, {"PATH": str(tmp_path / "empty")}) is None
    assert "Node.js is not installed" in capsys.readouterr().out
    assert list_page_checks(None) == []


def test_installed_once_for_a_lock(pack, tmp_path):
    environ = put_npm(tmp_path, 0)
    assert find_npm(pack, environ) is not None
    assert find_npm(pack, environ) is not None
    assert len(asked(tmp_path)) == 1
    assert asked(tmp_path)[0].startswith("ci ")
    (pack / "package-lock.json").write_text('{"packages": {}}', encoding="utf-8")
    assert find_npm(pack, environ) is not None
    assert len(asked(tmp_path)) == 2


def test_what_is_installed_from_this_lock_is_taken_as_it_is(pack, tmp_path):
    digest = hashlib.sha256(b"{}").hexdigest()
    (pack / "node_modules" / STAMP).write_text(digest, encoding="utf-8")
    assert find_npm(pack, put_npm(tmp_path, 1)) is not None
    assert asked(tmp_path) == []


def test_no_network_is_an_error_under_ci_alone(pack, tmp_path, capsys):
    environ = put_npm(tmp_path, 1)
    assert find_npm(pack, environ) is None
    assert "is not checked" in capsys.readouterr().out
    with pytest.raises(SetupError, match=r"package-lock\.json"):
        find_npm(pack, {**environ, "CI": "true"})


def test_every_script_that_is_run_is_there():
    text = (Path(__file__).resolve().parents[2] / "package.json").read_text(encoding="utf-8")
    for name, command in list_page_checks(sys.executable):
        assert name == f"page {command[-1]}"
        assert f'"{command[-1]}":' in text
