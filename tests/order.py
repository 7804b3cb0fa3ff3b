"""Which files of tests come first: those that use the running host, then those that take longest.

Processes of pytest-xdist take a file each (`--dist loadfile`): none should be left alone with a long one at the end.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

# By the seconds of a processor that they and their processes take, most first; none of fewer than ten.
LONGEST = (
    "functional/test_learning", "core/train/test_team", "core/train/test_every_method", "core/train/test_team_memory",
    "core/train/test_run_plan", "tools/nano/test_compare", "core/test_offline", "core/train/test_kernel_mode",
    "tools/nano/test_training", "core/train/test_shared_tokens", "core/train/test_features", "docs/test_how_to_add",
    "campaigns/test_short", "core/launch/test_worker", "benchmarks/test_musubi_nano", "core/adapters/test_light_import",
    "core/test_earlier_version", "core/launch/test_rank", "core/train/test_resume", "core/train/test_shared_lora",
    "tools/nano/test_judge", "core/train/test_adapters", "core/train/test_kept_plan", "core/train/test_average",
    "core/kernels/test_blocks", "core/launch/test_ranks", "core/memory/precisions/test_model", "tools/test_headless_demo",
    "tools/test_demo", "test_wheel", "core/train/test_previews", "core/train/test_methods", "core/cli/commands/test_preview",
    "core/objective/test_regularizers", "core/train/test_crepa", "core/train/test_only_for_show",
    "core/encoders/test_light_import", "core/launch/test_training", "core/launch/test_machines", "core/train/test_run",
    "core/train/test_regularizers", "core/train/test_loop", "tools/nano/test_ground", "core/train/test_loading",
    "core/train/test_sharded_job", "core/train/test_alternate", "core/train/test_claim",
)  # fmt: skip
_PLACES = {name: place for place, name in enumerate(LONGEST)}


def put_in_order(items: list[Any], tests: Path) -> None:
    """Sort tests by their files, in place; `tests` is the folder that the names are of."""
    with_host = {item.path for item in items if "host" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path not in with_host, _place(item.path, tests)))


def _place(path: Path, tests: Path) -> int:
    name = path.with_suffix("").relative_to(tests).as_posix() if path.is_relative_to(tests) else ""
    return _PLACES.get(name, len(LONGEST))


def missing(tests: Path, names: Collection[str] = LONGEST) -> list[str]:
    """Those of the names that no file has."""
    return [name for name in names if not (tests / f"{name}.py").is_file()]
