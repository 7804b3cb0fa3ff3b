"""All tests that need a GPU, one after another: some of them fill its memory on purpose."""

import re
from pathlib import Path

from .by_tests import TESTS, attack_by_tests
from .campaign import Campaign, Report

_ASKS = re.compile(r"torch\.cuda\.(is_available|device_count)\(\)")


def gpu_tests() -> list[str]:
    """Their files: those that ask whether there is a GPU."""
    return sorted(str(path) for path in TESTS.rglob("test_*.py") if _ASKS.search(path.read_text(encoding="utf-8")))


def attack(tries: int, seed: int, place: Path) -> Report:
    """Run all of them `tries` times; what needs two GPUs or a package that is not here is skipped."""
    return attack_by_tests(
        ["-c", str(TESTS / "pytest.ini"), *gpu_tests(), "--grids"], tries, seed, place, may_skip=True
    )


CAMPAIGN = Campaign(attack, short=0, long=1)
