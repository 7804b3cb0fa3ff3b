"""Prepares pyproject.toml for the Comfy registry, before a version is published. In the pack's folder: python -m tools.registry

The registry takes the range of front ends from the dependencies. For Python's packaging it must not stand there: who installs
the command line alone would get ComfyUI's whole page.
"""

import re
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
PACKAGE = "comfyui-frontend-package"
_RANGE = re.compile(r'^frontend = "([^"]+)"', re.MULTILINE)
_DEPENDENCIES = re.compile(r"^dependencies = \[", re.MULTILINE)


def with_frontend(text: str) -> str:
    """pyproject.toml with the front end among the dependencies. ValueError where it says no range, or has no dependencies."""
    wanted = _RANGE.search(text)
    if wanted is None or len(_DEPENDENCIES.findall(text)) != 1:
        raise ValueError(
            "pyproject.toml needs one line of dependencies, and the range of front ends in [tool.wantrain]."
        )
    return _DEPENDENCIES.sub(f'dependencies = ["{PACKAGE}{wanted[1]}", ', text)


if __name__ == "__main__":
    PYPROJECT.write_text(with_frontend(PYPROJECT.read_text(encoding="utf-8")), encoding="utf-8")
