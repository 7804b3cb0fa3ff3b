"""The file of results, to which every call adds, and the table that is printed from it."""

import json
from pathlib import Path
from typing import Any

from wan_train.benchmarks.ceilings import Work, elementwise_floor, roofline, useful_flop
from wan_train.benchmarks.material import MODELS, Clip

Row = dict[str, Any]
Report = dict[str, Any]

TOLERANCE = 5e-3  # of the losses on the same tensors, relative; both compute in bf16
TOLERANCE_FP8 = 2e-2  # where a product is taken in fp8, or the weights are rounded anew


def read_report(path: Path) -> Report:
    """What the file holds; an empty report if it is not there."""
    empty: Report = {"device": "", "date": "", "versions": {}, "command": [], "rows": [], "peers": [], "ceilings": {}}
    return {**empty, **json.loads(path.read_text(encoding="utf-8"))} if path.exists() else empty


def write_report(path: Path, report: Report) -> None:
    """Write it, rows in the order of model, tokens and time, with the peer and the roofline beside each."""
    for row in report["rows"]:
        _complete(row, report)
    report["rows"].sort(key=lambda row: (list(MODELS).index(row["model"]), row["tokens"], row["ours_s"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def start_report(path: Path, *, device: str, date: str, versions: dict[str, str], command: str) -> Report:
    """The report to add to. SystemExit if the file is of another device."""
    report = read_report(path)
    if report["device"] not in ("", device):
        raise SystemExit(f"{path} holds results of {report['device']}, and this is {device}: choose another --out.")
    report |= {"device": device, "date": date, "versions": {**report["versions"], **versions}}
    report["command"] = [old for old in report["command"] if old != command] + [command]
    return report


def add_ours(report: Report, model: str, row: Row) -> None:
    """A row of `ours.run_task`; it takes the place of the one of the same model, clip and plan."""
    config, clip = MODELS[model], Clip.parse(row["clip"])
    renamed = {"model": model, "shape": row["clip"], "tokens": clip.tokens(config), "rank": 16}
    renamed |= {"ours_s" if name == "s" else name: value for name, value in row.items() if name != "clip"}
    _replace(report["rows"], renamed, ("model", "shape", "plan"))


def add_peer(report: Report, model: str, row: Row) -> None:
    """A row of `musubi.measure` or `aitoolkit.measure`."""
    renamed = {"model": model, "shape": row["clip"], **row}
    del renamed["clip"]
    _replace(report["peers"], renamed, ("model", "shape", "peer", "setting"))


def disagreements(rows: list[Row]) -> list[str]:
    """A sentence for each row whose loss is not the peer's on the same tensors, within the tolerance."""
    found = []
    for row in rows:
        limit = TOLERANCE if row["precision"] in ("auto", "bf16", "fp32") else TOLERANCE_FP8
        compared = row.get("compared")
        if compared and not compared["difference"] <= limit:
            found.append(
                f"{row['model']} {row['shape']} {row['plan']}: our loss {compared['ours']} is not the peer's "
                f"{compared['peer']} within {limit:g}."
            )
    return found


def table(report: Report) -> str:
    """The rows as Markdown."""
    lines = [
        "| Model | Clip | Tokens | Ours | s/step | of roofline | Peak, GB | Peer's best, s/step | Peer's peak, GB | Speed-up |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        peer, floor = row.get("peer_s"), row.get("roofline_s")
        cells = [
            row["model"].upper(),
            row["shape"],
            str(row["tokens"]),
            row["plan"],
            f"{row['ours_s']:.2f}",
            f"{row['ours_s'] / floor:.2f}x" if floor else "",
            _number(row.get("peak_reserved_gb")),
            f"{peer:.2f} ({row['peer']}, {_short(row['peer_setting'])})" if peer else "",
            _number(row.get("peer_peak_reserved_gb")),
            f"{peer / row['ours_s']:.2f}x" if peer else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _complete(row: Row, report: Report) -> None:
    """Add what follows from other parts of the report."""
    same = [p for p in report["peers"] if (p["model"], p["shape"]) == (row["model"], row["shape"])]
    if same:
        best = min(same, key=lambda peer: peer["s"])
        row |= {"peer": best["peer"], "peer_setting": best["setting"], "peer_s": best["s"]}
        row["peer_peak_reserved_gb"] = best.get("peak_reserved_gb")
    config = MODELS[row["model"]]
    memory = row["memory"]
    products = "fp8" if row["products"] == "fp8" else "bf16"
    work = Work(
        config,
        row["tokens"],
        products,
        memory["checkpointing"] is not False,  # auto, where no plan chose: on
        memory["keep_attention"] or 0,
        (memory.get("keep_linears") or 0) + (memory.get("offload_linears") or 0),
    )
    for name, value in (
        ("roofline_s", roofline(work, report["ceilings"])),
        ("elementwise_floor_s", elementwise_floor(work, report["ceilings"])),
    ):
        row[name] = None if value is None else float(f"{value:.4g}")
    row["tflops"] = round(useful_flop(config, row["tokens"]) / row["ours_s"] / 1e12, 1)


def _replace(rows: list[Row], new: Row, key: tuple[str, ...]) -> None:
    """Put `new` into `rows`, in the place of what has the same `key`."""
    rows[:] = [row for row in rows if any(row[name] != new[name] for name in key)] + [new]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _short(setting: str) -> str:
    """The options of a peer's setting that say most."""
    return " ".join(part.lstrip("-") for part in setting.split() if not part.startswith("--cuda_"))
