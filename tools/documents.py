"""Writes what is made from the declarations of the options: docs/job.toml, docs/options.json,
docs/recipes.md, tables of the help pages; and the help pages in other languages (tools/help_pages.py).

In the pack's folder: python -m tools.documents. With --check nothing is written, and what differs is named.
"""

import sys
from pathlib import Path

from core.recipe.documents import help_page, job_toml, options_json
from core.recipe.presets.page import recipes_page

from . import help_pages

PACK = Path(__file__).resolve().parent.parent


def documents(pack: Path) -> dict[Path, str | None]:
    """Each file, and the text that it should have; None: there should be no such file."""
    english = {
        page: help_page(page.read_text(encoding="utf-8"), page.stem)
        for page in sorted((pack / "web" / "docs").glob("*.md"))
    }
    cut_pages = {page.stem: help_pages.cut_page(page.stem, text, pack / "locales") for page, text in english.items()}
    return {
        pack / "docs" / "job.toml": job_toml(),
        pack / "docs" / "options.json": options_json(),
        pack / "docs" / "recipes.md": recipes_page(),
        **english,
        **help_pages.files(cut_pages, pack),
    }


def main(arguments: list[str]) -> int:
    """Write, or check, and say what changed; returns the exit status."""
    wanted = documents(PACK)
    changed = {path: text for path, text in wanted.items() if help_pages.text_of(path) != text}
    print(*(path.relative_to(PACK) for path in changed), sep="\n", end="\n" if changed else "")
    if "--check" not in arguments:
        help_pages.put(changed)
    return 1 if changed and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
