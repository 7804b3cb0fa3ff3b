"""The core speaks in its own words: what to connect, to press or to type is added by the page and by the command line."""

import ast
import re
from pathlib import Path

import pytest
from wan_train.core import errors
from wan_train.core.cli.advice import ADVICE
from wan_train.core.cli.main import main
from wan_train.core.errors import CLIP_VISION, START_AGAIN, ConfigError, advised

CORE = Path(__file__).resolve().parents[2] / "core"
OF_A_PAGE = re.compile(
    "[Qq]ueue (it )?again|press R|[Cc]onnect (it|the|a|one) |[Dd]isconnect |Cache Latents|Cache T5|Merge Stages|"
    "Train LoRA Stage|Load (CLIP|VAE|Wan|Diffusion)"
)
OF_A_TERMINAL = re.compile("--(work|set|devices|clip-vision|models|dataset)\\b|`wantrain ")
ABOUT = [value for name, value in vars(errors).items() if name.isupper()]


def sentences(path: Path):
    """All strings of a file but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_a_room_below_the_command_line_says_nothing_of_pages_and_options():
    for path in sorted(CORE.rglob("*.py")):
        others = (OF_A_PAGE,) if "cli" in path.relative_to(CORE).parts else (OF_A_PAGE, OF_A_TERMINAL)
        assert [text for text in sentences(path) if any(words.search(text) for words in others)] == [], path


def test_advice_follows_the_sentence():
    error = ConfigError("the model needs CLIP features: give them.", about=CLIP_VISION)
    assert str(error) == "the model needs CLIP features: give them."
    assert advised(error, {CLIP_VISION: "Here: connect them."}) == f"{error} Here: connect them."
    assert advised(error, {START_AGAIN: "Here: press Run."}) == str(error)
    assert advised(ConfigError("rank is 0: give 1."), ADVICE) == "rank is 0: give 1."


def test_a_node_adds_what_to_do_on_the_page_once(comfy):
    from wan_train.nodes.advice import ADVICE, advising

    assert set(ADVICE) == set(ABOUT)
    with pytest.raises(ConfigError, match=r"^give them\. Here: Load CLIP Vision") as caught, advising(), advising():
        raise ConfigError("give them.", about=CLIP_VISION)
    assert str(caught.value).count("Here:") == 1


def test_the_command_line_adds_its_option(tmp_path, caplog, monkeypatch):
    assert set(ADVICE) <= set(ABOUT)
    from wan_train.core.cli.commands import scan

    def refuse(_: object) -> int:
        raise ConfigError("give the CLIP features.", about=CLIP_VISION)

    monkeypatch.setattr(scan, "run", refuse)
    assert main(["scan", str(tmp_path)]) == 1
    assert "--clip-vision" in caplog.text
