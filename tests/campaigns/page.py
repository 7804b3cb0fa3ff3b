"""The tests of the page, `tests/browser`, each in both of ComfyUI's renderers."""

import re
import subprocess
import sys
from pathlib import Path

from .campaign import Campaign, Report

TESTS = Path(__file__).resolve().parents[1]
_LINE = re.compile(r"^(FAILED|ERROR) (\S+)")
_COUNT = re.compile(r"(\d+) (passed|failed|error|errors|skipped)\b")


def attack(tries: int, seed: int, place: Path) -> Report:
    """Run all of them `tries` times. A test that is skipped did not hold either: the campaign is asked for by hand."""
    report = Report(facts={"seed": seed})
    for number in range(tries):
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(TESTS / "browser"),
            "--both-renderers",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        command += ["--basetemp", str(place / f"try{number}"), "-rfE"]
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        failed = [match[2] for line in lines if (match := _LINE.match(line))]
        for name in failed:
            report.check(False, f"try {number}: {name}")
        counts = {kind: int(count) for count, kind in _COUNT.findall(lines[-1] if lines else "")}
        report.check(not counts.get("skipped"), f"try {number}: tests were skipped: {lines[-1:]}")
        report.check(
            done.returncode == 0 or bool(failed), f"try {number}: pytest ended with {done.returncode}: {lines[-3:]}"
        )
        report.tries += 1
        report.facts |= counts
    return report


CAMPAIGN = Campaign(attack, short=0, long=1, needs_host=True)
