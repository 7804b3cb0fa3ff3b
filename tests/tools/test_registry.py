"""What the Comfy registry is told of the pack, and Python's packaging is not."""

import shutil
import subprocess
from pathlib import Path

import pytest
from wan_train.tools.registry import with_frontend

PACK = Path(__file__).resolve().parents[2]


def test_the_range_of_front_ends_comes_among_the_dependencies_and_nothing_else_changes():
    before = (PACK / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    after = with_frontend("\n".join(before)).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        ('dependencies = ["peft>=0.16"]', 'dependencies = ["comfyui-frontend-package>=1.42.0", "peft>=0.16"]')
    ]


@pytest.mark.parametrize(
    "text", ["", "dependencies = []", 'frontend = ">=1"', "dependencies = []\n" * 2 + 'frontend = ">=1"']
)
def test_a_file_without_them_is_refused(text):
    with pytest.raises(ValueError, match="needs one line of dependencies"):
        with_frontend(text)


def test_help_pages_of_all_languages_are_published_and_what_they_are_made_of_is_not(tmp_path):
    shutil.copy(PACK / ".comfyignore", tmp_path / ".gitignore")  # the same patterns
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    files = ["web/docs/CacheT5.md", "web/docs/CacheT5/zh-TW.md", "locales/de/nodeDefs.json", "locales/de/help.json"]
    run = subprocess.run(["git", "check-ignore", *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["locales/de/help.json"]


def test_it_is_done_before_a_version_is_published():
    steps = (PACK / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert steps.index("python -m tools.registry") < steps.index("node publish")
