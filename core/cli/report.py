"""What a person can paste into an issue: the machine, what works on it, and what a run promised and took.

No path, no file name, no caption and no name of a person or a computer is in it.
"""

import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path, PurePath
from statistics import median
from typing import Any

import torch

from ..devices import resolve_device
from ..errors import ConfigError
from ..kernels.available import kernels_problem
from ..memory.attention import AttentionShape, candidates, fastest
from ..memory.compile import compiler_problem
from ..memory.precision import native_dtype
from ..objective.passes import Passes
from ..packages import installed_version
from ..plan.card import Card
from ..plan.decision import buckets_of
from ..plan.estimate import estimate
from ..plan.plan import Bucket, Gpus, Plan, Task, clip_tokens
from ..plan.probe import version_of
from ..plan.sizes import Trained
from ..serial import from_dict
from ..settings.job import Job
from ..train.events import Event, EventReader
from ..train.run_folder import RunFolder
from ..wan.config import WanConfig

PACK = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "triton-windows", "peft", "bitsandbytes", "safetensors", "flash-attn-4", "flash_attn")
_ENDINGS = (
    "safetensors",
    "gguf",
    "png",
    "jpe?g",
    "webp",
    "gif",
    "mp4",
    "mov",
    "mkv",
    "webm",
    "avi",
    "txt",
    "json",
    "pt",
)
WARM_UP = 3  # steps of a size that are not like those after them
TRIED = AttentionShape(1024, 8, 128, torch.float32, torch.device("cpu"))  # what kinds of attention are tried on

Report = dict[str, Any]


def make_report(run: Path | None) -> Report:
    """Of this machine and, where its folder is given, of a run. RunError for a folder that is no run's."""
    device = resolve_device("auto")
    report = {"machine": machine(device), "works": what_works(device)}
    return report if run is None else {**report, "run": of_run(RunFolder(run))}


def machine(device: torch.device) -> dict[str, Any]:
    """The card and what depends on it, the system, and versions."""
    is_cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if is_cuda else None
    return {
        "card": "none" if properties is None else properties.name,
        "vram_gb": None if properties is None else round(properties.total_memory / 1e9, 1),
        "device": version_of(device),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "pack": pack_version(),
        "comfyui": comfyui_version(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
    }


def pack_version(pack: Path = PACK) -> str:
    """Of this package; "" where nothing says it."""
    return _found(pack / "pyproject.toml", r'^version = "([^"]+)"') or installed_version("wan-train")


def comfyui_version(pack: Path = PACK) -> str:
    """Of the ComfyUI whose custom_nodes folder holds this package; "" where it is in none."""
    return _found(pack.parent.parent / "comfyui_version.py", r'^__version__ = "([^"]+)"')


def what_works(device: torch.device) -> dict[str, str]:
    """What can be tried on `device`, each with "yes" or the reason why it does not work."""
    found = {"kernels": _said(kernels_problem(device)), "compiler": _said(compiler_problem(device))}
    shape = AttentionShape(TRIED.tokens, TRIED.num_heads, TRIED.head_dim, native_dtype(device), device)
    for candidate in candidates(device):
        try:
            fastest([candidate], shape)
            problem = None
        except ConfigError as error:
            problem = str(error)
        found[f"attention {candidate.name}"] = _said(problem)
    return found


def of_run(folder: RunFolder) -> dict[str, Any]:
    """What the run was, what its plans promised, and what its steps took."""
    job = folder.read_job()
    clean = cleaner(job)
    events = list(EventReader(folder.events_path).stream())
    plans = [event for event in events if event["event"] == "plan"]
    steps = [event for event in events if event["event"] == "step" and isinstance(event.get("seconds"), (int, float))]
    return {
        "model": {"label": clean(job.model.label), "precision": job.model.precision},
        "sizes": [{"latents": list(b.shape), "batch": b.batch, "share": round(b.share, 2)} for b in buckets_of(job)],
        "adapter": {"rank": job.adapter.rank, "targets": list(job.adapter.targets), "dropout": job.adapter.dropout},
        "optimizer": job.optimizer.name,
        "steps": {"wanted": job.loop.steps, "done": max((step["step"] for step in steps), default=0)},
        "memory": asdict(job.memory),
        "plan": clean(plans[0]["message"]) if plans else "",
        "promised": _promised(plans[0]) if plans else {},
        "measured": _measured(events, steps),
        "shortages": [clean(event["message"]) for event in plans if "step" in event],
        "warnings": list(dict.fromkeys(clean(e["message"]) for e in events if e["event"] in ("warning", "error"))),
        "card": plans[0].get("card") if plans else None,
        "cell": _cell(job, plans, steps),
    }


def cleaner(job: Job) -> Callable[[str], str]:
    """A function that takes out of a sentence whatever belongs to the user of this job."""
    private = {job.name: "NAME", job.trigger_word: "WORD", **dict.fromkeys(job.trigger_word.split(", "), "WORD")}
    named = (job.adapter.start_from, job.adapter.merge_into_base, job.crepa.encoder, job.crepa.vae)
    for path in (job.model.path, job.model.recovery_adapter, job.preview_vae, job.data.empty_text_path, *named):
        private |= {path: "PATH", PurePath(path).name: "FILE"}
    for sample in job.data.samples:
        private |= {sample.name: "SAMPLE", sample.caption: "CAPTION"}
    longest_first = sorted((text for text in private if len(text) > 1), key=len, reverse=True)

    def clean(sentence: str) -> str:
        for text in longest_first:
            sentence = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", private[text], sentence)
        return impersonal(sentence)

    return clean


def impersonal(sentence: str) -> str:
    """The sentence without paths, names of files, and the names of this computer and its user."""
    for text, word in ((str(Path.home()), "HOME"), (Path.home().name, "USER"), (platform.node(), "COMPUTER")):
        if len(text) > 1 and text != "root":
            sentence = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", word, sentence)
    sentence = re.sub(r"[^\s'\"()]*[\\/][^\s'\"()]*", "PATH", sentence)
    return re.sub(rf"[^\s'\"()]+\.(?:{'|'.join(_ENDINGS)})\b", "FILE", sentence)


def _promised(plan: Event) -> dict[str, Any]:
    return {
        "gpu_gb": _gb(plan.get("vram", 0) + plan.get("overhead", 0)),
        "ram_gb": _gb(plan.get("ram", 0)),
        **{name: plan.get(name) for name in ("seconds", "start_seconds", "sizes_seconds", "beside")},
    }


def _measured(events: list[Event], steps: list[Event]) -> dict[str, Any]:
    """Seconds of the start, of the first step of each size, and of those after it; GB of the most memory."""
    if not steps:
        return {}
    firsts: dict[int, float] = {}
    later: list[float] = []
    for step in steps:
        if step.get("tokens") in firsts:
            later.append(step["seconds"])
        else:
            firsts[step.get("tokens", 0)] = step["seconds"]
    peaks = {
        name: round(max(step.get(f"{name}_gib", 0.0) for step in steps) * 2**30 / 1e9, 2)
        for name in ("allocated", "reserved")
    }
    started = events[0].get("time")
    start = steps[0].get("time", 0.0) - steps[0]["seconds"] - started if isinstance(started, float) else None
    return {
        "start_seconds": None if start is None else round(start, 1),
        "first_seconds": {str(tokens): seconds for tokens, seconds in firsts.items()},
        "seconds": median(later) if later else None,
        "beside": _beside(events),
        **{f"{name}_gb": peak or None for name, peak in peaks.items()},
    }


def _beside(events: list[Event]) -> dict[str, list[float]]:
    """Seconds of each validation, preview (until the run could go on) and checkpoint; older diaries have less."""
    found: dict[str, list[float]] = {}
    for event in events:
        kind, seconds = event["event"], event.get("seconds")
        if seconds is None:
            continue
        if kind == "shown" and found.get("preview"):
            found["preview"][-1] = seconds
        elif kind in ("validation", "preview", "checkpoint"):
            found.setdefault(kind, []).append(seconds)
    return found


def _cell(job: Job, plans: list[Event], steps: list[Event]) -> dict[str, Any] | None:
    """What `benchmarks/fit_constants.py` reads: the size that took the most memory, under a plan that held to the end."""
    if len(plans) != 1 or not {"card", "task"} <= plans[0].keys():
        return None
    told = plans[0]
    task, card, plan = task_of(told["task"]), from_dict(Card, told["card"]), from_dict(Plan, told["plan"])
    by_size: dict[int, tuple[Bucket, Plan]] = {}
    for bucket in buckets_of(job):
        tokens = bucket.batch * clip_tokens(task.sizes, bucket)
        by_size[tokens] = bucket, plan_of_size(plan, told, tokens)
    largest = max(by_size, key=lambda tokens: estimate(task, *by_size[tokens], card).vram)
    seconds = [step["seconds"] for step in steps if step.get("tokens") == largest][WARM_UP:]
    peak = max((step.get("allocated_gib", 0.0) for step in steps), default=0.0) * 2**30 / 1e9
    if not seconds or not peak or not by_size.keys() <= {step.get("tokens") for step in steps}:
        return None
    bucket, its_plan = by_size[largest]
    return {
        "task": told["task"],
        "plan": asdict(its_plan),
        "latents": list(bucket.shape),
        "batch": bucket.batch,
        "gigabytes": round(peak, 3),
        "seconds": round(median(seconds), 4),
    }


def plan_of_size(plan: Plan, told: Event, tokens: int) -> Plan:
    """The plan with what a size of clips keeps of its own."""
    names = ("keep_attention", "keep_linears", "offload_linears")
    kept = {name: told.get(name, {}).get(str(tokens), getattr(plan, name)) for name in names}
    return replace(plan, **kept)


def task_of(values: dict[str, Any]) -> Task:
    """The task that an event or a report tells. ConfigError for fields that this version does not know."""
    own = {
        "sizes": from_dict(WanConfig, values["sizes"]),
        "trained": from_dict(Trained, values["trained"]),
        "passes": from_dict(Passes, values.get("passes", {})),
        "gpus": from_dict(Gpus, values.get("gpus", {})),
        "seen": tuple((number, share) for number, share in values.get("seen", ())),
    }
    unknown = values.keys() - {field.name for field in fields(Task)}
    if unknown:
        raise ConfigError(f"the report has the unknown field '{min(unknown)}': read it with the version that wrote it.")
    return Task(**{**values, **own})


def as_text(report: Report) -> str:
    """For an issue, as Markdown."""
    lines = ["### Machine", *_lines(report["machine"]), "", "### What works", *_lines(report["works"])]
    if run := report.get("run"):
        told = {name: value for name, value in run.items() if name not in ("card", "cell")}
        lines += ["", "### Run", *_lines(told)]
        if run["card"]:
            lines += ["", "### Card, as measured", *_lines({k: v for k, v in run["card"].items() if k != "name"})]
    return "\n".join(lines)


def _lines(values: dict[str, Any]) -> Iterable[str]:
    for name, value in values.items():
        words = name.replace("_", " ")
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield f"- {words}: {'none' if not value else ''}".rstrip()
            yield from (f"  - {item}" for item in value)
        elif isinstance(value, dict):
            yield f"- {words}: " + (", ".join(f"{key} {_short(item)}" for key, item in value.items()) or "none")
        elif isinstance(value, list):
            yield f"- {words}: " + "; ".join(" ".join(f"{k} {_short(v)}" for k, v in item.items()) for item in value)
        else:
            yield f"- {words}: {_short(value)}"


def _short(value: object) -> str:
    if value is None:
        return "auto or not known"
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value)) if all(isinstance(item, int) for item in value) else "+".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _said(problem: str | None) -> str:
    return "yes" if problem is None else impersonal(problem)


def _found(path: Path, pattern: str) -> str:
    try:
        match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


def _gb(num_bytes: float) -> float:
    return round(num_bytes / 1e9, 2)
