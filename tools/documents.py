"""Writes what is made from the declarations of the options: docs/job.toml, docs/options.json,
docs/recipes.md, tables of the help pages.

In the pack's folder: python -m tools.documents. With --check nothing is written, and what differs is named.
"""

import sys
from pathlib import Path

from core.recipe.documents import help_page, job_toml, options_json
from core.recipe.presets.page import recipes_page

PACK = Path(__file__).resolve().parent.parent


def documents(pack: Path) -> dict[Path, str]:
    """Each file, and the text that it should have."""
    pages = sorted((pack / "web" / "docs").glob("*.md"))
    return {
        pack / "docs" / "job.toml": job_toml(),
        pack / "docs" / "options.json": options_json(),
        pack / "docs" / "recipes.md": recipes_page(),
        **{page: help_page(page.read_text(encoding="utf-8"), page.stem) for page in pages},
    }


def main(arguments: list[str]) -> int:
    """Write, or check, and say what changed; returns the exit status."""
    changed = [
        (path, text)
        for path, text in documents(PACK).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in changed:
        print(path.relative_to(PACK))
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if changed and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
