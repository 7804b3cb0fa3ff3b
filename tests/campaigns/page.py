"""The tests of the page, `tests/browser`, each in both of ComfyUI's renderers."""

from pathlib import Path

from .by_tests import TESTS, attack_by_tests
from .campaign import Campaign, Report


def attack(tries: int, seed: int, place: Path) -> Report:
    """Run all of them `tries` times. A test that is skipped did not hold either: the campaign is asked for by hand."""
    arguments = [str(TESTS / "browser"), "--both-renderers", "--grids"]
    return attack_by_tests(arguments, tries, seed, place, may_skip=False)


CAMPAIGN = Campaign(attack, short=0, long=1, needs_host=True)
