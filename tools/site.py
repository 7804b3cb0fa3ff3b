"""Builds the documentation as web pages, of the same files that people read in the repository.

In the pack's folder, with `pip install mkdocs-material`: python -m tools.site
The pages lie in build/site, to be opened in a browser.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
BUILD = PACK / "build"

# Title in the menu -> pages; what they link to is taken along.
MENU: dict[str, list[str]] = {
    "Start": ["README.md", "docs/recipes.md", "docs/importing.md", "docs/guides.md"],
    "Nodes": ["web/docs/*.md"],
    "Machines": ["docs/measurements.md", "docs/many-gpus.md", "docs/rented.md", "docs/slurm.md", "docs/skypilot.md"],
    "For developers": ["CONTRIBUTING.md", "docs/architecture.md", "docs/how-to-add.md", "docs/how-to-add/*.md"],
    "More": ["CHANGELOG.md", "nano/README.md", "benchmarks/README.md"],
}
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def pages(pack: Path) -> dict[str, list[Path]]:
    """The pages of each part of the menu."""
    return {
        title: [path for pattern in patterns for path in sorted(pack.glob(pattern))] for title, patterns in MENU.items()
    }


def with_links(pack: Path, paths: list[Path]) -> set[Path]:
    """The pages, and all files of the pack that they link to."""
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        if path.suffix == ".md":
            links = LINK.findall(path.read_text(encoding="utf-8"))
            targets = [(path.parent / link).resolve() for link in links if "://" not in link]
            waiting += [target for target in targets if target.is_relative_to(pack)]
    return found


def configuration(pack: Path, source: Path, site: Path) -> str:
    """What mkdocs reads."""
    menu: list[str] = []
    for title, paths in pages(pack).items():
        menu += [f"  - {title}:", *(f"    - {path.relative_to(pack).as_posix()}" for path in paths)]
    return f"""site_name: ComfyUI-WanTrain
docs_dir: {source.as_posix()}
site_dir: {site.as_posix()}
use_directory_urls: false
theme:
  name: material
  font: false
  features: [navigation.sections, navigation.top, content.code.copy]
markdown_extensions:
  - admonition
  - tables
  - pymdownx.superfences:
      custom_fences:
        - name: mermaid
          class: mermaid
          format: !!python/name:pymdownx.superfences.fence_code_format
nav:
{chr(10).join(menu)}
"""


def main() -> int:
    """Build; returns the exit status. A link that leads nowhere is an error."""
    source, site = BUILD / "site_source", BUILD / "site"
    shutil.rmtree(source, ignore_errors=True)
    for path in with_links(PACK, [path for paths in pages(PACK).values() for path in paths]):
        target = source / path.relative_to(PACK)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    settings = BUILD / "mkdocs.yml"
    settings.write_text(configuration(PACK, source, site), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--clean",
        "--quiet",
        "--config-file",
        str(settings),
    ]
    status = subprocess.run(command, check=False).returncode
    if status == 0:
        print(site / "index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
