"""Translations say what the English texts say today, and ComfyUI serves them."""

import json
import re
import urllib.request

import pytest
from wan_train.tools.locales import (
    LOCALES,
    PAGE,
    checksum,
    english_texts,
    flat,
    keep_page_true,
    keep_true,
    languages,
    nested,
    page_texts,
    read,
    read_page,
    translated,
)

LANGUAGES = ["de", "es", "fr", "ja", "ko", "zh", "zh-TW"]
each_language = pytest.mark.parametrize("language", LANGUAGES)
NAMED = {  # texts of the page that name a button or the sidebar's tab
    "Write checkpoints and free the GPU, until you press Go on. All trainings of the workflow wait.": "Go on",
    "Press Compare on the run that {name} is to be compared with.": "Compare",
    "See WanTrain runs in the sidebar.": "WanTrain runs",
}


def test_the_texts_to_translate_are_those_of_the_nodes(comfy):
    """If not: python -m tools.locales."""
    from wan_train.nodes import NODES

    assert read(LOCALES / "english.json") == english_texts([node.GET_NODE_INFO_V1() for node in NODES])


def test_languages():
    assert [path.name for path in languages()] == LANGUAGES


@each_language
def test_a_translation_is_of_a_text_that_there_is_and_has_its_numbers(language):
    english, texts = read(LOCALES / "english.json"), flat(read(LOCALES / language / "nodeDefs.json"))
    assert set(texts) <= set(english)
    made_from = read(LOCALES / language / "made_from.json")
    assert {path for path in texts if made_from[path] != checksum(english[path])} == set()

    def numbers(text):
        return sorted(re.findall(r"\d+(?:[.,]\d+)?", text.replace(",", ".")))

    assert {path for path, text in texts.items() if numbers(text) != numbers(english[path])} == set()
    assert len(texts) > 0.5 * len(english)


def test_a_text_that_changes_loses_its_translations(tmp_path):
    (tmp_path / "de").mkdir()
    texts = {"Node/display_name": "Knoten", "Node/inputs/rank/tooltip": "Rang", "Node/inputs/gone/tooltip": "weg"}
    (tmp_path / "de" / "nodeDefs.json").write_text(json.dumps(nested(texts)), encoding="utf-8")
    english = {"Node/display_name": "Node", "Node/inputs/rank/tooltip": "Rank."}
    assert keep_true(english, tmp_path) == {"de": []}
    changed = {**english, "Node/inputs/rank/tooltip": "Its rank."}
    (tmp_path / "english.json").write_text(json.dumps(changed), encoding="utf-8")  # as after a merge of two branches
    assert keep_true(changed, tmp_path) == {"de": ["Node/inputs/rank/tooltip"]}
    assert read(tmp_path / "de" / "nodeDefs.json") == {"Node": {"display_name": "Knoten"}}
    assert read(tmp_path / "english.json") == changed


def test_the_texts_to_translate_of_the_page_are_those_of_its_scripts():
    """If not: python -m tools.locales."""
    assert read_page(LOCALES / "english_page.json") == page_texts()


@each_language
def test_the_page_is_translated_whole_with_its_places_for_values(language):
    english, texts = page_texts(), translated(LOCALES / language)
    for file, table in texts.items():
        assert set(table) <= set(english[file])
        assert {key for key, text in table.items() if places(text) != places(english[file][key])} == set()
        assert [key for key, text in table.items() if not text.strip()] == []
        assert len(table) > 0.9 * len(english[file])


def places(text):
    return sorted(re.findall(r"\{\w+\}", text))


@each_language
def test_what_names_a_button_names_it_as_it_is_called(language):
    words = translated(LOCALES / language)["main"]
    for text, name in NAMED.items():
        assert name in text
        assert text not in words or words[name] in words[text]


def test_what_a_script_says_is_found(tmp_path):
    (tmp_path / "one.js").write_text(
        """
const NOTIFY = "WanTrain.Notify";
const settings = [{
    id: /** @type {any} */ (NOTIFY),
    category: ["WanTrain"],
    name: "Tell me",
    tooltip:
      "When it \\"ends\\".",
  }];
const commands = [{ id: "WanTrain.Import", label: "Open a setup", icon: "pi" }];
say(
  "One, " +
    "two \\u2026", { a: 1 });
list.say(given);
sayCount("{count} eight",
  "{count} eights", 2);
class List {
  say(text) {
    this.say(say("Three"));
  }
}
""",
        encoding="utf-8",
    )
    (tmp_path / "page.html").write_text(
        '<p data-say>Four</p><p>No</p><label data-say>Five</label><input data-say placeholder="Six" aria-label="Seven" '
        'title="no"><i placeholder="no">no</i>',
        encoding="utf-8",
    )
    said = ("One, two \u2026", "Three", "Four", "Five", "Six", "Seven", "{count} eight", "{count} eights")
    assert page_texts([tmp_path]) == {
        "main": {text: text for text in said},
        "commands": {"WanTrain_Import/label": "Open a setup"},
        "settings": {"WanTrain_Notify/name": "Tell me", "WanTrain_Notify/tooltip": 'When it "ends".'},
    }


@pytest.mark.parametrize("call", ["say(text)", "say(`step ${step}`)", 'sayCount("1 a", n)', 'x + say(ok ? "a" : "b")'])
def test_what_can_not_be_found_is_refused(tmp_path, call):
    (tmp_path / "one.js").write_text(f"\n{call};\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"one\.js, line 2"):
        page_texts([tmp_path])


def test_a_text_of_the_page_that_changes_loses_its_translations(tmp_path):
    (tmp_path / "de").mkdir()
    files = {
        "main": {PAGE: {"Stop": "Stopp", "Gone": "Weg"}},
        "commands": nested({"WanTrain_Import/label": "Setup laden"}),
        "settings": nested({"WanTrain_Notify/name": "Melden", "WanTrain_Notify/tooltip": "Einmal."}),
    }
    for name, table in files.items():
        (tmp_path / "de" / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    settings = {"WanTrain_Notify/name": "Tell me", "WanTrain_Notify/tooltip": "Once."}
    english = {"main": {"Stop": "Stop"}, "commands": {"WanTrain_Import/label": "Load"}, "settings": settings}
    assert keep_page_true(english, tmp_path) == {"de": []}
    assert read_page(tmp_path / "english_page.json") == english
    assert read(tmp_path / "de" / "main.json") == {"menuLabels": {"Load": "Setup laden"}, PAGE: {"Stop": "Stopp"}}
    changed = {**english, "main": {"Stop now": "Stop now"}, "settings": {**settings, "WanTrain_Notify/name": "Say"}}
    assert keep_page_true(changed, tmp_path) == {"de": ["Stop now", "Say"]}
    assert translated(tmp_path / "de") == {
        "main": {},
        "commands": {"WanTrain_Import/label": "Setup laden"},
        "settings": {"WanTrain_Notify/tooltip": "Einmal."},
    }


def test_comfyui_serves_them(host):
    with urllib.request.urlopen(f"{host.url}/i18n", timeout=60) as answer:
        served = json.load(answer)
    for language in LANGUAGES:
        nodes = read(LOCALES / language / "nodeDefs.json")
        assert served[language]["nodeDefs"]["LoadWanDiT"] == nodes["LoadWanDiT"]
        page = translated(LOCALES / language)
        assert served[language][PAGE] == page["main"]
        assert flat(served[language]["settings"]).items() >= page["settings"].items()
        assert flat(served[language]["commands"]).items() >= page["commands"].items()
