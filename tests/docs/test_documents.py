"""What documents name is there, and their tables, lists and headings are shown as such."""

import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
DOCUMENTS = [PACK / "CONTRIBUTING.md", PACK / "README.md", *sorted((PACK / "docs").rglob("*.md"))]
PAGES = [
    *DOCUMENTS,
    *(PACK / name for name in ("CHANGELOG.md", "nano/README.md", "benchmarks/README.md", "docker/README.md")),
    *sorted((PACK / "web" / "docs").rglob("*.md")),
]
TABLES = [PACK / "tests" / "browser" / "README.md"]
NAMED = re.compile(
    r"`((?:core|nodes|tools|tests|web|docs|benchmarks|nano|example_workflows)(?:/[\w.-]+)*)(?:::\w+)?/?`"
)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(PACK).as_posix())
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(PACK).as_posix())


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


@each_page
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


def kind_of(line: str) -> str:
    """What a line of Markdown is by its first characters; "" if it is empty."""
    marks = {"|": "table", "#": "heading", "- ": "list", "<!--": "comment"}
    return next((kind for mark, kind in marks.items() if line.startswith(mark)), "text" if line.strip() else "")


def badly_set(text: str) -> list[str]:
    """Lines of a page that are not shown as what they are meant to be: blank lines are missing, or a table's head."""
    lines = ["", *FENCED.sub("", text).splitlines(), ""]
    kinds = [kind_of(line) for line in lines]
    found: list[str] = []
    for index in range(1, len(lines) - 1):
        before, kind, after = kinds[index - 1 : index + 2]
        begins_table = kind == "table" and before != "table"
        if (
            (kind == "heading" and (before or after) not in ("", "comment"))
            or (begins_table and before not in ("", "comment"))
            or (begins_table and not re.fullmatch(r"\|[ :|-]+\|", lines[index + 1]))
            or (before == "table" and kind not in ("table", "", "comment"))
            or (kind == "list" and before == "text" and not lines[index - 1].startswith(" "))
        ):
            found.append(lines[index])
    return found


def test_what_is_badly_set_is_found():
    assert badly_set("# A\n\none\n\n| a |\n|---|\n| b |\n\n- c\n  d\n- e\n") == []
    assert badly_set("one\n## Two\n\nthree\n- four\n\n| a | b |\n| c | d |\nfive\n") == [
        "## Two",
        "- four",
        "| a | b |",
        "five",
    ]


@each_page
def test_its_parts_are_shown_as_what_they_are(path: Path):
    assert badly_set(path.read_text(encoding="utf-8")) == []
