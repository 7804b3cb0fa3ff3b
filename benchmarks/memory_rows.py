"""The file of the memory benchmark's results, and the tables that are printed from it."""

import json
from pathlib import Path
from typing import Any

# What makes a cell, and what it is where a row does not say.
KEY = {"model": "", "shape": "", "precision": "", "cap_gb": 0, "cap_ram_gb": 0, "held_ram_gb": 0, "rank": 16}


def add_row(rows: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Put `new` into `rows`, in the place of what was measured of the same cell."""
    rows[:] = [row for row in rows if _key(row) != _key(new)] + [new]


def _key(row: dict[str, Any]) -> list[Any]:
    return [row.get(name, default) for name, default in KEY.items()]


def write(path: Path, report: dict[str, Any]) -> None:
    """The whole file, after each part."""
    compare(report["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def compare(rows: list[dict[str, Any]]) -> None:
    """Give each row `resident_s`, the seconds of the same step without a cap, where that was measured."""
    free = {
        _kind(row): row["ours_s"]
        for row in rows
        if row.get("ours_s") and not (row["cap_gb"] or row["cap_ram_gb"] or row.get("held_ram_gb"))
    }
    for row in rows:
        row["resident_s"] = free.get(_kind(row))


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["shape"], row["precision"], row.get("rank", KEY["rank"])


def table(rows: list[dict[str, Any]]) -> str:
    """What fits, as Markdown."""
    lines = [
        "| Clip | Precision | Rank | Cap, GB | Seconds a step | of that without a cap | Peak, GB | Main memory, GB | Plan |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda row: (*_kind(row), row["cap_gb"])):
        seconds, free, held = row.get("ours_s"), row.get("resident_s"), row.get("held_ram_gb")
        cells = [
            row["shape"],
            row["precision"],
            str(row.get("rank", KEY["rank"])),
            f"{row['cap_gb']:.0f}" if row["cap_gb"] else "none",
            f"{seconds:.2f}" if seconds else _failure(row),
            f"{seconds / free:.2f}x" if seconds and free else "",
            f"{row['peak_reserved_gb']:.1f}" if seconds else "",
            ((f"{row['ram_gb']:.1f}" if seconds else "") + (f" (held to {held:g})" if held else "")).strip(),
            row.get("plan") or row.get("why", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _failure(row: dict[str, Any]) -> str:
    if row["oom"] == "ram":
        return "out of main memory"
    if row.get("why"):
        return "does not fit"
    return "out of memory" if row["oom"] else "failed"


def peers_table(peers: list[dict[str, Any]]) -> str:
    """What a peer takes for the same clips, as Markdown."""
    lines = [
        "| Clip | Peer | Seconds a step | Peak, GB | Main memory, GB | Its setting |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in sorted(peers, key=lambda row: (row["model"], row["shape"], row["s"])):
        peak = row.get("peak_reserved_gb")
        seconds = f"{row['s']:.2f}"
        peaks = ["" if peak is None else f"{peak:.1f}", f"{row['ram_gb']:.1f}"]
        lines.append(f"| {' | '.join([row['shape'], row['peer'], seconds, *peaks, row['setting']])} |")
    return "\n".join(lines)
