"""A help page in another language has what is translated of today's English page, and the English text of the rest."""

import pytest
from wan_train.tools.help_pages import (
    cut,
    cut_page,
    faults,
    files,
    help_texts,
    in_order,
    node_names,
    pages,
    put,
    render,
    settled,
    still_to_do,
    take,
    units,
)
from wan_train.tools.locales import checksum, languages, nested, read, write

PAGES = pages()
PAGE = """\
# Thing (Wan)

It makes things. See
[how](#how-it-works).

| Input | Meaning |
|---|---|
| rank | Its rank. 0: none. |

<!-- options: main -->
| Input | Meaning |
|---|---|
| width | Its width. More is wider, up to 16. |
<!-- end of options -->

## How it works

- Press **Thing**, and
  wait.
- `a`: **bold**.

```
No words
```
"""
TIPS = {"Thing/inputs/rank/tooltip": "Its rank. 0: none.", "Thing/inputs/width/tooltip": "Its width."}
ENGLISH = {"Thing/display_name": "Thing (Wan)", **TIPS}
OF_NODES = dict(zip(ENGLISH, ("Ding (Wan)", "Sein Rang. 0: keiner.", "Seine Breite."), strict=True))
LEFT = [
    "It makes things. See [how](#how-it-works).",
    "Input",
    "Meaning",
    "More is wider, up to 16.",
    "How it works",
    "Press **Thing**, and wait.",
    "`a`: **bold**.",
]
GERMAN = dict(
    zip(
        LEFT,
        (
            "Macht Dinge. Siehe [wie](#how-it-works).",
            "Eingang",
            "Bedeutung",
            "Mehr ist breiter, bis 16.",
            "Wie es geht",
            "Drücke **Ding** und warte.",
            "`a`: **fett**.",
        ),
        strict=True,
    )
)
GERMAN_PAGE = """\
<!-- Made from Thing.md and locales/de/help.json by: python -m tools.documents -->
# Ding (Wan)

Macht Dinge. Siehe [wie](#wie-es-geht).

| Eingang | Bedeutung |
| --- | --- |
| rank | Sein Rang. 0: keiner. |

| Eingang | Bedeutung |
| --- | --- |
| width | Seine Breite. Mehr ist breiter, bis 16. |

## Wie es geht

- Drücke **Ding** und warte.
- `a`: **fett**.

```
No words
```
"""


@pytest.fixture
def pack(tmp_path):
    """A pack of one node, whose name and tooltips are translated."""
    write(tmp_path / "locales" / "english.json", ENGLISH)
    write(tmp_path / "locales" / "de" / "nodeDefs.json", nested(OF_NODES))
    write(tmp_path / "locales" / "de" / "made_from.json", {path: checksum(text) for path, text in ENGLISH.items()})
    (tmp_path / "web" / "docs").mkdir(parents=True)
    (tmp_path / "web" / "docs" / "Thing.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def read_pages(pack):
    return pages(pack / "web" / "docs", pack / "locales")


def translate(pack, texts):
    """Give translations, and write the pages; what was wrong."""
    given = {checksum(text): translation for text, translation in texts.items()}
    wrong = take(pack / "locales" / "de", given, read_pages(pack))
    put(files(read_pages(pack), pack))
    return wrong


def german(pack):
    path = pack / "web" / "docs" / "Thing" / "de.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


@pytest.mark.parametrize("node", PAGES)
def test_an_english_page_is_the_same_after_it_was_cut_and_put_together(node):
    assert cut_page(node, render(PAGES[node], {})) == PAGES[node]
    assert [(unit, found) for unit in units(PAGES[node]) if (found := faults(unit, unit, {}))] == []


def test_ids_are_of_one_text_each():
    texts = {unit for page in PAGES.values() for unit in units(page)}
    assert len({checksum(text) for text in texts}) == len(texts)


def test_what_is_to_be_translated_stands_once_in_the_order_of_the_page(pack):
    found = still_to_do(pack / "locales" / "de", (), read_pages(pack))
    assert [item["text"] for item in found] == LEFT
    assert {item["id"]: item["page"] for item in found} == {checksum(text): "Thing" for text in LEFT}
    assert [item["names"] for item in found if "names" in item] == [{"Thing": "Ding"}]
    assert still_to_do(pack / "locales" / "de", ["Other"], read_pages(pack)) == []


def test_a_page_is_written_with_translations_and_its_links_lead_to_its_headings(pack):
    assert translate(pack, GERMAN) == []
    assert german(pack) == GERMAN_PAGE
    assert still_to_do(pack / "locales" / "de", (), read_pages(pack)) == []
    assert list(help_texts(pack / "locales" / "de")) == LEFT


def test_a_page_of_which_little_is_translated_is_not_written_and_taken_away(pack):
    most = dict(list(GERMAN.items())[:5])
    translate(pack, dict(list(most.items())[:4]))  # 7 of 10 units
    assert german(pack) is None
    translate(pack, most)
    assert "Press **Thing**, and wait." in german(pack)
    write(pack / "locales" / "de" / "help.json", {})
    put(files(read_pages(pack), pack))
    assert german(pack) is None


def test_a_text_that_changes_is_shown_in_english(pack):
    translate(pack, GERMAN)
    page = pack / "web" / "docs" / "Thing.md"
    page.write_text(PAGE.replace("wait.", "go."), encoding="utf-8")
    put(files(read_pages(pack), pack))
    assert german(pack) == GERMAN_PAGE.replace("Drücke **Ding** und warte.", "Press **Thing**, and go.")
    assert [item["text"] for item in still_to_do(pack / "locales" / "de", (), read_pages(pack))] == [
        "Press **Thing**, and go."
    ]
    assert "Press **Thing**, and wait." not in help_texts(pack / "locales" / "de")


def test_a_tooltip_whose_translation_is_stale_is_shown_in_english(pack):
    translate(pack, GERMAN)
    made_from = read(pack / "locales" / "de" / "made_from.json")
    write(pack / "locales" / "de" / "made_from.json", made_from | {"Thing/inputs/width/tooltip": checksum("Old.")})
    put(files(read_pages(pack), pack))
    assert german(pack) == GERMAN_PAGE.replace("Seine Breite.", "Its width.")


def test_a_page_of_a_node_that_is_gone_is_taken_away(pack):
    translate(pack, GERMAN)
    (pack / "web" / "docs" / "Thing.md").unlink()
    put(files(read_pages(pack), pack))
    assert german(pack) is None


def test_no_space_follows_wide_punctuation():
    lines = cut("| Input | Meaning |\n|---|---|\n| width | Its width. More. |\n", ["Its width."])
    assert render(lines, {"Its width.": "幅。", "More.": "もっと。"}).endswith("| width | 幅。もっと。 |\n")
    assert render(lines, {"Its width.": "너비."}).endswith("| width | 너비. More. |\n")


@pytest.mark.parametrize(
    ("english", "translation", "fault"),
    [
        ("Set `rank` to 16.", "Setze `rang` auf 16.", "code"),
        ("Set `rank` to 16.", "Setze `rank` auf 18.", "numbers"),
        ("See [it](#how).", "Siehe [es](#wie).", "links"),
        ("A **bold** word.", "Ein fettes Wort.", "** stands 2 times"),
        ("An *odd* word.", "Ein **seltsames** Wort.", "* stands 2 times"),
        (r"a \| b", "a b", "| stands 1 times"),
        ("*no rank* (a note): set one.", "*kein Rang* (ein Hinweis): setze einen.", "*no rank* is an error"),
        ("*no rank*, *no `file`*: set one.", "*no rank*, *keine `file`*: setze einen.", "*no `file`* is an error"),
        ("Press **Thing**.", "Drücke **Sache**.", "is called **Ding**"),
        ("One.", "Eins.\n\nZwei.", "one line"),
        ("One.", "- Eins.", "one line"),
        ("One.", "", "one line"),
        ("A **bold** word.", "これは**「太い」**語です", "outside of the marks"),
        ("An *odd* word.", "これは* 妙*な語です", "within the marks"),
    ],
)
def test_a_translation_that_lost_something_is_refused(english, translation, fault):
    found = faults(english, translation, {"Thing": "Ding"})
    assert [part for part in found if fault in part] != []


@pytest.mark.parametrize(
    ("english", "translation"),
    [
        ("Set `rank` to 2,000, or `alpha` to 0.5.", "Setze `alpha` auf 0,5 oder `rank` auf 2.000."),
        ("A **bold** word.", "これは **「太い」** 語です。"),
        ("A **bold** word.", "これは**太い**語です。"),
        ("*no rank*: set one.", "*no rank*、設定してください。"),
        ("*odd* words: many.", "*odd* Wörter: viele."),
    ],
)
def test_a_translation_with_all_is_taken(english, translation):
    assert faults(english, translation, {}) == []


def test_what_is_wrong_is_named_and_the_rest_is_taken(pack):
    wrong = translate(pack, GERMAN | {"`a`: **bold**.": "`b`: **fett**.", "Nowhere": "Nirgends"})
    assert [line.split(": ")[:2] for line in wrong] == [
        [checksum("Nowhere"), "no page has such a text"],
        [checksum("`a`: **bold**."), "code"],
    ]
    assert list(help_texts(pack / "locales" / "de")) == LEFT[:-1]


@pytest.mark.parametrize("language", languages(), ids=lambda path: path.name)
def test_tooltips_and_titles_come_from_the_texts_of_nodes(language):
    known = settled(language)
    assert [node for node, page in PAGES.items() if page[0][1] not in known] == []
    assert sum(unit in known for page in PAGES.values() for unit in units(page)) > 250
    assert not set(help_texts(language)) & set(known)


@pytest.mark.parametrize("language", languages(), ids=lambda path: path.name)
def test_translations_have_what_the_english_texts_have(language):
    texts, names = help_texts(language), node_names(language)
    assert set(texts) <= {unit for _, unit in in_order(language, PAGES)}
    assert [(unit, found) for unit, text in texts.items() if (found := faults(unit, text, names))] == []


def test_files_are_as_the_translations_make_them():
    """If one differs: python -m tools.documents."""
    wanted = files(PAGES)
    assert len(wanted) >= len(PAGES) * len(languages())
    assert {path for path, text in wanted.items() if text is None and path.is_file()} == set()
    made = {path: text for path, text in wanted.items() if text is not None}
    assert {path for path, text in made.items() if path.read_text(encoding="utf-8") != text} == set()
