"""Translations say what the English texts say today, and ComfyUI serves them."""

import json
import re
import urllib.request

import pytest
from wan_train.tools.locales import LOCALES, english_texts, flat, keep_true, languages, nested, read

LANGUAGES = ["de", "es", "fr", "ja", "ko", "zh", "zh-TW"]


def test_the_texts_to_translate_are_those_of_the_nodes(comfy):
    """If not: python -m tools.locales."""
    from wan_train.nodes import NODES

    assert read(LOCALES / "english.json") == english_texts([node.GET_NODE_INFO_V1() for node in NODES])


def test_languages():
    assert [path.name for path in languages()] == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_is_of_a_text_that_there_is_and_has_its_numbers(language):
    english, texts = read(LOCALES / "english.json"), flat(read(LOCALES / language / "nodeDefs.json"))
    assert set(texts) <= set(english)

    def numbers(text):
        return sorted(re.findall(r"\d+(?:[.,]\d+)?", text.replace(",", ".")))

    assert {path for path, text in texts.items() if numbers(text) != numbers(english[path])} == set()
    assert len(texts) > 0.5 * len(english)


def test_a_text_that_changes_loses_its_translations(tmp_path):
    (tmp_path / "de").mkdir()
    texts = {"Node/display_name": "Knoten", "Node/inputs/rank/tooltip": "Rang", "Node/inputs/gone/tooltip": "weg"}
    (tmp_path / "de" / "nodeDefs.json").write_text(json.dumps(nested(texts)), encoding="utf-8")
    english = {"Node/display_name": "Node", "Node/inputs/rank/tooltip": "Rank."}
    (tmp_path / "english.json").write_text(
        json.dumps({**english, "Node/inputs/gone/tooltip": "gone"}), encoding="utf-8"
    )
    assert keep_true(english, tmp_path) == {"de": []}
    changed = {**english, "Node/inputs/rank/tooltip": "Its rank."}
    assert keep_true(changed, tmp_path) == {"de": ["Node/inputs/rank/tooltip"]}
    assert read(tmp_path / "de" / "nodeDefs.json") == {"Node": {"display_name": "Knoten"}}
    assert read(tmp_path / "english.json") == changed


def test_comfyui_serves_them(host):
    with urllib.request.urlopen(f"{host.url}/i18n", timeout=60) as answer:
        served = json.load(answer)
    for language in LANGUAGES:
        nodes = read(LOCALES / language / "nodeDefs.json")
        assert served[language]["nodeDefs"]["LoadWanDiT"] == nodes["LoadWanDiT"]
