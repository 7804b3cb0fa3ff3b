"""What GitHub runs: on the ComfyUI and Python versions that the pack names, with actions that nobody can change unseen."""

import re
from pathlib import Path

import pytest
from wan_train.tools.comfyui import HOST_VERSION

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PACK / ".github" / "workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def test_the_workflows_are_there():
    assert [path.stem for path in WORKFLOWS] == ["lint", "publish", "site", "tests"]


@each_workflow
def test_actions_are_pinned_to_a_commit(path: Path):
    for used in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")):
        assert used.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", used), used


def test_tried_with_the_newest_and_the_oldest_comfyui_that_the_pack_names():
    project = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    (oldest,) = re.findall(r'requires-comfyui = ">=([\d.]+)"', project)
    tests = (PACK / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\bv(\d+\.\d+\.\d+)", re.sub(r"# v.*", "", tests))) == {HOST_VERSION, oldest}
    lint = (PACK / ".github" / "workflows" / "lint.yml").read_text(encoding="utf-8")
    assert f"ref: v{HOST_VERSION}" in lint


def test_tried_with_the_oldest_python_that_the_pack_names():
    project = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', project)
    tests = (PACK / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (versions,) = re.findall(r"python: \[(.*)\]", tests)
    assert versions.split(", ")[0] == f'"{oldest}"'


def test_each_push_is_checked_as_the_registry_will_check_it():
    lint, publish = ((PACK / ".github" / "workflows" / name).read_text("utf-8") for name in ("lint.yml", "publish.yml"))
    (steps,) = re.findall(r"python -m pip install comfy-cli.*?node validate\n", publish, flags=re.DOTALL)
    assert steps in lint
    assert "node publish" not in lint


@pytest.mark.parametrize(
    "path", sorted((PACK / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_are_what_github_takes(path: Path):
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields) > 0
    for part in form["body"]:
        assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
