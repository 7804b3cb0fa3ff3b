"""Campaigns that are tests, run in another way than every day."""

import re
import subprocess
import sys
from pathlib import Path

from .campaign import Report

TESTS = Path(__file__).resolve().parents[1]
_LINE = re.compile(r"^(FAILED|ERROR) (\S+)")
_MOST_SAID = 50_000  # characters of what pytest says of failures
_COUNT = re.compile(r"(\d+) (passed|failed|error|errors|skipped)\b")


def attack_by_tests(arguments: list[str], tries: int, seed: int, place: Path, *, may_skip: bool) -> Report:
    """Run pytest with these arguments `tries` times. Unless `may_skip`, a test that is skipped did not hold either."""
    report = Report(facts={"seed": seed})
    for number in range(tries):
        command = [sys.executable, "-m", "pytest", *arguments, "-q", "-p", "no:cacheprovider"]
        command += ["--basetemp", str(place / f"try{number}"), "-rfE"]
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        failed = [match[2] for line in lines if (match := _LINE.match(line))]
        for name in failed:
            report.check(False, f"try {number}: {name}")
        if done.returncode:
            sys.stderr.write(done.stdout[-_MOST_SAID:])
        counts = {kind: int(count) for count, kind in _COUNT.findall(lines[-1] if lines else "")}
        report.check(may_skip or not counts.get("skipped"), f"try {number}: tests were skipped: {lines[-1:]}")
        report.check(
            done.returncode == 0 or bool(failed), f"try {number}: pytest ended with {done.returncode}: {lines[-3:]}"
        )
        report.tries += 1
        report.facts |= counts
    return report
