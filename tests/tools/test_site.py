"""The site holds every page of the documentation, and what they link to."""

from pathlib import Path

from wan_train.tools.site import configuration, pages, with_links

PACK = Path(__file__).resolve().parents[2]


def test_every_page_is_there():
    listed = [path for paths in pages(PACK).values() for path in paths]
    assert len(listed) == len(set(listed))
    found = with_links(PACK, listed)
    written = {
        *(PACK / "docs").rglob("*.md"),
        *(PACK / "web" / "docs").glob("*.md"),
        PACK / "README.md",
        PACK / "CHANGELOG.md",
    }
    assert written <= set(listed)
    assert {PACK / "docs" / "screenshot.jpg", PACK / "LICENSE", PACK / "docs" / "job.toml"} <= found
    menu = configuration(PACK, PACK / "source", PACK / "site")
    assert all(f"    - {path.relative_to(PACK).as_posix()}\n" in menu + "\n" for path in listed)
