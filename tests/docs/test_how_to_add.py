"""The pages of docs/how-to-add work as they stand: their code is put into a copy of the pack, and their tests run there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
PAGES = sorted((PACK / "docs" / "how-to-add").glob("*.md"))
COPIED = (
    "core", "nodes", "tools", "docs", "web", "tests/core", "tests/conftest.py", "tests/grids.py", "tests/order.py",
    "tests/warm.py", "tests/host_packs", "tests/pytest.ini", "__init__.py", "wantrain.py", "pyproject.toml",
)  # fmt: skip
BLOCK = re.compile(r"^```(\w+) file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^python run\.py test -- (.+)$", re.MULTILINE)
TOOL = re.compile(r"^python -m (tools\.\w+)$", re.MULTILINE)
PLACE = re.compile(r'(Widget\((\w+), "\w+", )(\d+)')
QUICK = ("loss", "timestep-sampling")  # the others take longer, and run with --long
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_tried = pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else [pytest.mark.long]) for p in PAGES]
)


def changed(old: str, diff: str) -> str:
    """`old` with a block of lines that begin with a space, + or - put in the one place that it fits."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert old.count(before) == 1, f"the page changes lines that are there {old.count(before)} times:\n{before}"
    return old.replace(before, after)


def with_last_places(diff: str, settings: Path) -> str:
    """The diff with the place of each new widget one more than the last of its node, which rises with every option."""
    declared = "".join(path.read_text(encoding="utf-8") for path in settings.glob("*.py"))

    def last(match: re.Match[str]) -> str:
        return f"{match[1]}{max(int(place) for _, node, place in PLACE.findall(declared) if node == match[2]) + 1}"

    return "".join(PLACE.sub(last, line) if line[0] == "+" else line for line in diff.splitlines(keepends=True))


def follow(page: Path, copy: Path) -> None:
    """Do in a copy of the pack what a page says."""
    for language, name, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        file = copy / name
        if language == "diff":
            diff = with_last_places(text, copy / "core" / "settings")
            file.write_text(changed(file.read_text(encoding="utf-8"), diff), encoding="utf-8")
        else:
            assert not file.exists(), f"{name} is there already: the page's example needs another name"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    for name in COPIED:
        source, target = PACK / name, tmp_path / "pack" / name
        if source.is_dir():
            # With what Python has compiled, which it knows again by the files' times, but not what it is just writing.
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.pyc.*"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return tmp_path / "pack"


def test_the_index_names_every_page():
    index = (PACK / "docs" / "how-to-add.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(how-to-add/([\w-]+)\.md\)", index)) == [page.stem for page in PAGES]


@pytest.mark.grid(2)
@each_tried
def test_the_page_works_as_it_stands(page: Path, copy: Path):
    follow(page, copy)
    for tool in TOOL.findall(page.read_text(encoding="utf-8")):
        subprocess.run([sys.executable, "-m", tool], cwd=copy, check=True)
    (command,) = COMMAND.findall(page.read_text(encoding="utf-8"))
    tests = shlex.split(command)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    (own,) = (name for language, name, _ in blocks if name.startswith("tests/") and language != "diff")
    assert any(own.startswith(place) for place in tests), "the page's own test is not run"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-p", "no:cacheprovider", *tests],
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@each_page
def test_the_code_on_the_page_is_in_the_packs_style(page: Path, copy: Path):
    follow(page, copy)
    files = [name for _, name, _ in BLOCK.findall(page.read_text(encoding="utf-8")) if name.endswith(".py")]
    for command in (["check"], ["format", "--check", "--diff"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files], cwd=copy, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
