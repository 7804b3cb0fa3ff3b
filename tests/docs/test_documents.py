"""What documents name is there."""

import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
DOCUMENTS = [PACK / "CONTRIBUTING.md", PACK / "README.md", *sorted((PACK / "docs").rglob("*.md"))]
TABLES = [PACK / "tests" / "browser" / "README.md"]
NAMED = re.compile(
    r"`((?:core|nodes|tools|tests|web|docs|benchmarks|nano|example_workflows)(?:/[\w.-]+)*)(?:::\w+)?/?`"
)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(PACK).as_posix())


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tests_that_a_table_names_are_there():
    for path in TABLES:
        named = re.findall(r"`(tests/[\w./]+)(?:::(\w+))?`", path.read_text(encoding="utf-8"))
        assert len(named) > 50
        for file, name in named:
            assert (PACK / file).exists(), file
            assert not name or f"def {name}(" in (PACK / file).read_text(encoding="utf-8"), f"{file}::{name}"


@each_document
def test_files_that_it_names_are_there(path: Path):
    text = path.read_text(encoding="utf-8")
    made = set(re.findall(r"^```\w+ file=(\S+)$", text, re.MULTILINE))  # by the reader, who follows the page
    assert {name for name in NAMED.findall(FENCED.sub("", text)) if not (PACK / name).exists()} - made == set()


@each_document
def test_its_links_lead_somewhere(path: Path):
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_document
def test_modules_that_it_runs_are_there(path: Path):
    for module in re.findall(r"python -m (tools[\w.]+)", path.read_text(encoding="utf-8")):
        assert (PACK / (module.replace(".", "/") + ".py")).is_file(), module
