"""Runs one campaign: python run.py campaign NAME --tries N --seed S, in the folder of the pack."""

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def register_pack() -> None:
    """Make the pack importable as `wan_train`, as the tests do; its own `nodes` must not hide the host's."""
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (PACK, Path(__file__).parent)]
    spec = importlib.util.spec_from_file_location(
        "wan_train", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    sys.modules["wan_train"] = importlib.util.module_from_spec(spec)


def main(arguments: list[str]) -> int:
    """Run it; 1 if anything did not hold."""
    register_pack()
    from wan_train.tests.campaigns.campaign import NAMES, load

    parser = argparse.ArgumentParser(prog="run.py campaign", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--tries", type=int, help="default: the long form's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, help="a new or empty folder to work in, which is kept; default: a temporary one"
    )
    options = parser.parse_args(arguments)
    campaign = load(options.name)
    tries = options.tries or campaign.long
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wantrain-campaign-") as temporary:
        place = options.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        report = campaign.attack(tries, options.seed, place)
    for failure in report.failures:
        print(f"FAILED: {failure}")
    for name, value in report.facts.items():
        print(f"{name}: {value}")
    seconds = time.monotonic() - start
    print(
        f"{options.name}, seed {options.seed}: {report.tries} tries, {len(report.failures)} failed, {seconds:.0f} s",
        flush=True,
    )
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
