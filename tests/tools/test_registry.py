"""What the Comfy registry is told of the pack, and Python's packaging is not."""

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


def test_it_is_done_before_a_version_is_published():
    steps = (PACK / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert steps.index("python -m tools.registry") < steps.index("node publish")
