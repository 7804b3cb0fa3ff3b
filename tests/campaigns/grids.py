"""All combinations of the tests' grids, of which a run of the tests tries a part (`tests/grids.py`)."""

from pathlib import Path

from .by_tests import TESTS, attack_by_tests
from .campaign import Campaign, Report


def attack(tries: int, seed: int, place: Path) -> Report:
    """Run all that are marked `tries` times; what needs a GPU or a package that is not here is skipped."""
    arguments = ["-c", str(TESTS / "pytest.ini"), str(TESTS), "-m", "grid", "--grids"]
    return attack_by_tests(arguments, tries, seed, place, may_skip=True)


CAMPAIGN = Campaign(attack, short=0, long=1, needs_host=True)
