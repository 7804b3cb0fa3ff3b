"""How long a training step takes, beside what the card could do and beside a peer, on the same random model.

python benchmarks/speed.py --model 14b --clips 832x480x33 1024x1024x1 --musubi ~/musubi-tuner \\
    --ours "precision=bf16 compile=static attention=auto" --out benchmarks/results/speed-h100.json

Every setting runs in a process of its own. Each call adds to the file; the same setting again replaces its row. A
setting is a list of options of the job's memory and its precision, and of the clips it is for, if not all:
"precision=fp8_compute compile=static keep_attention=20 clips=832x480x33". A setting of AI-Toolkit is a list of options of
its configuration: "compile=true train.attention_backend=flash".
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import aitoolkit, musubi  # noqa: E402
from wan_train.benchmarks.ceilings import measure_ceilings, measure_copies  # noqa: E402
from wan_train.benchmarks.material import MODELS, Clip, write_checkpoint  # noqa: E402
from wan_train.benchmarks.ours import Setting, Task, run_task  # noqa: E402
from wan_train.benchmarks.results import (  # noqa: E402
    Report,
    add_ours,
    add_peer,
    disagreements,
    read_report,
    start_report,
    table,
    write_report,
)
from wan_train.core.errors import ConfigError  # noqa: E402
from wan_train.core.launch.ahead import worker_environment  # noqa: E402

DEFAULT_OURS = ["precision=bf16 compile=static attention=auto", "precision=fp8_compute compile=static attention=auto"]
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "fp32": torch.float32}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--weights", choices=list(DTYPES), default="bf16", help="dtype of the random checkpoint")
    parser.add_argument("--clips", type=Clip.parse, nargs="+", default=[Clip(832, 480, 33)], metavar="WxHxFRAMES")
    parser.add_argument("--ours", action="append", metavar="SETTING", help="once for each setting; 'none': no setting")
    parser.add_argument("--musubi", type=Path, metavar="CHECKOUT", help="measure musubi-tuner, too")
    parser.add_argument(
        "--musubi-packages", type=Path, metavar="FOLDER", help="what 'pip install --target' made for it"
    )
    parser.add_argument("--musubi-args", action="append", metavar="OPTIONS", help="once for each setting of it")
    parser.add_argument("--aitoolkit", type=Path, metavar="CHECKOUT", help="measure AI-Toolkit, too")
    parser.add_argument("--aitoolkit-packages", type=Path, metavar="FOLDER", help="the same for it")
    parser.add_argument("--aitoolkit-args", action="append", metavar="SETTING", help="once for each setting of it")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each clip")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, at least 2")
    parser.add_argument("--second-start", action="store_true", help="start each setting again, with what was compiled")
    parser.add_argument("--no-ceilings", action="store_true", help="keep the rates that the file holds")
    parser.add_argument("--no-profile", action="store_true", help="trace no step")
    parser.add_argument("--limit", type=float, default=500, help="seconds that one setting may take")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint (29 GB for 14b); default: in memory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of the file")
    options = parser.parse_args(arguments)
    if (
        options.warmup < 2
    ):  # the report of the second may come with that of the third: it is read when the host has time
        parser.error(f"--warmup must be at least 2, got {options.warmup}.")
    return options


def main() -> None:
    """Measure what is asked for, and write after each part."""
    options = read_options()
    if options.table:
        print(table(read_report(options.out)))
        return
    try:
        settings = [Setting.parse(text) for text in options.ours or DEFAULT_OURS if text != "none"]
        for text in options.aitoolkit_args or []:
            aitoolkit.read_setting(text)
        clips = [*options.clips, *(Clip.parse(text) for setting in settings for text in setting.clips)]
        clips = sorted(set(clips), key=lambda clip: clip.tokens(MODELS[options.model]))
    except (ConfigError, ValueError) as error:
        sys.exit(str(error))
    report = start_report(
        options.out,
        device=device_name(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        versions=versions(),
        command="python benchmarks/speed.py " + shlex.join(sys.argv[1:]),
    )
    work = work_folder(options.work)
    model = work / f"random-{options.model}-{options.weights}.safetensors"
    if not model.exists():
        apart("the random checkpoint", write_checkpoint, model, MODELS[options.model], DTYPES[options.weights])
    for option in PEERS:
        if vars(options)[option] is not None:
            measure_peer(options, option, report, work, model)
    if not options.no_ceilings:
        fp8 = any(setting.precision == "fp8_compute" for setting in settings)
        apart("the ceilings", write_ceilings, work / "ceilings.json", options.model, clips, fp8)
        report["ceilings"] |= json.loads((work / "ceilings.json").read_text())
        write_report(options.out, report)
    for number, setting in enumerate(settings):
        measure_ours(options, report, setting, work, model, number)
    print(table(report))
    if wrong := disagreements(report["rows"]):
        sys.exit("\n".join(wrong))


def measure_ours(
    options: argparse.Namespace, report: Report, setting: Setting, work: Path, model: Path, number: int
) -> None:
    """One setting of ours, into the report."""
    folders = [work / f"{peer}-first-steps-{options.model}" for peer in ("musubi", "aitoolkit")]
    dumps = next((str(folder) for folder in folders if folder.exists()), "")
    task = Task(
        model=str(model),
        setting=setting,
        clips=setting.clips or tuple(map(str, options.clips)),
        work=str(work),
        out=str(work / f"ours-{number}.jsonl"),
        steps=options.steps,
        warmup=options.warmup,
        profile=not options.no_profile,
        dumps=dumps,
    )
    rows = _rows_apart(task, options.limit)
    if options.second_start and rows:
        again = replace(task, clips=task.clips[:1], steps=1, warmup=0, profile=False)
        for row in _rows_apart(again, options.limit):
            rows[0] |= {f"second_{name}": row[name] for name in ("prepare_s", "first_step_s")}
    for row in rows:
        add_ours(report, options.model, row)
    write_report(options.out, report)


class PeerKind(NamedTuple):
    """How a peer is measured."""

    name: str
    models: Collection[str]
    version: Callable[[Path], str]
    package_versions: Callable[[musubi.Peer], dict[str, str]]
    default_settings: Callable[[musubi.Peer], list[str]]
    measure: Callable[[musubi.Peer, str, float], list[dict[str, Any]]]


PEERS = {  # by their options
    "musubi": PeerKind(
        "musubi-tuner",
        musubi.TASKS,
        musubi.version,
        musubi.Peer.package_versions,
        musubi.default_settings,
        musubi.measure,
    ),
    "aitoolkit": PeerKind(
        aitoolkit.NAME,
        aitoolkit.MODEL_NAMES,
        aitoolkit.version,
        aitoolkit.package_versions,
        lambda _: [aitoolkit.COMPILED],
        aitoolkit.measure,
    ),
}


def measure_peer(options: argparse.Namespace, option: str, report: Report, work: Path, model: Path) -> None:
    """All settings of the peer that `option` names, into the report."""
    kind, given = PEERS[option], vars(options)
    if options.model not in kind.models:
        print(f"{kind.name} is not measured with the model {options.model}: it is left out.")
        return
    peer = make_peer(options, given[option], given[f"{option}_packages"], work, model)
    report["versions"] |= {kind.name: kind.version(peer.checkout), **kind.package_versions(peer)}
    for setting in given[f"{option}_args"] or kind.default_settings(peer):
        for row in kind.measure(peer, setting, options.limit):
            print(json.dumps(row), flush=True)
            add_peer(report, options.model, row)
        write_report(options.out, report)


def make_peer(
    options: argparse.Namespace, checkout: Path, packages: Path | None, work: Path, model: Path
) -> musubi.Peer:
    """The measurements wanted of a peer."""
    return musubi.Peer(
        checkout=checkout.expanduser().absolute(),
        packages=packages,
        model_name=options.model,
        model=model,
        clips=options.clips,
        work=work,
        steps=options.steps,
        warmup=options.warmup,
    )


def write_ceilings(path: Path, model_name: str, clips: list[Clip], fp8: bool) -> None:
    """Measure the rates for these clips, and write them as JSON."""
    config = MODELS[model_name]
    rates = measure_copies()
    for tokens in sorted({clip.tokens(config) for clip in clips}):
        rates |= measure_ceilings(config, tokens, fp8=fp8)
    path.write_text(json.dumps(rates), encoding="utf-8")


def _rows_apart(task: Task, limit: float) -> list[dict[str, Any]]:
    """The rows of a task, which are those done so far where it failed."""
    out = Path(task.out)
    out.unlink(missing_ok=True)
    apart(task.setting.plan, run_task, task, limit=limit, must=False)
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def apart(
    what: str,
    function: Callable[..., None],
    *arguments: Any,
    limit: float = 600,
    must: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Call a function in a new process, in a worker's environment, so that the GPU's memory is free again afterwards.

    `meanwhile` is called every second.
    """
    start = time.perf_counter()
    os.environ.update(worker_environment(os.environ))  # PyTorch reads it when it is imported, or first used
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    while process.is_alive() and (left := start + limit - time.perf_counter()) > 0:
        process.join(min(left, 1.0))
        meanwhile()
    if process.is_alive():
        process.kill()
        process.join()
    code, seconds = process.exitcode, time.perf_counter() - start
    print(f"{what}: {'done' if code == 0 else f'ended with code {code}'} after {seconds:.0f} s", flush=True)
    if code and must:
        sys.exit(1)


def work_folder(wanted: Path | None) -> Path:
    memory = Path("/dev/shm")
    folder = wanted or (memory / "wan-speed" if memory.is_dir() else Path(tempfile.gettempdir()) / "wan-speed")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def device_name() -> str:
    """Of the GPU; without one, that of the processor's kind."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {platform.machine()}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    if torch.backends.cudnn.is_available():
        found["cudnn"] = str(torch.backends.cudnn.version())
    for name in ("torch", "triton", "peft", "safetensors", "flash_attn_3", "flash-attn-4"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
