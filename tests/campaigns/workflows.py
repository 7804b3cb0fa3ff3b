"""Hostile prompts and requests, sent to one real ComfyUI: refused in a sentence, and nothing is written elsewhere.

Three tries in four are prompts, by turns of a small graph of all our nodes and of the example workflows, with one to three
faults; the fourth is a request to one of our routes. A prompt that the host takes, and that runs for long, is stopped.
What the host's own nodes and checks make of their own inputs is counted, and is no failure of ours.
"""

import json
import random
import socket
import time
import urllib.error
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wan_train.tests.conftest import PACK, find_host
from wan_train.tests.core.adapters.helpers import write_random
from wan_train.tests.host.graphs import TRAIN, data_graph, dit, node
from wan_train.tests.host_server import Host
from wan_train.tools.miniature import T2V
from wan_train.tools.workflow import ui_to_api

from .campaign import Campaign, Report
from .hostile import hostile_request, mutate
from .hosts import small_host

Json = dict[str, Any]
PATIENCE_S, END_S = (
    20.0,
    300.0,
)  # of a prompt that the host has taken: until it is stopped, and until it must have ended
RUN = "known_high_0123456789abcdef"
OURS = f"custom_nodes/{PACK.name}/"  # in a traceback
WRITTEN = (
    "output",
    "temp",
    "user",
    "tmp",
    "models/loras",
    "server.log",
)  # where a host may write, below its base folder


def attack(tries: int, seed: int, place: Path) -> Report:
    """Send `tries` prompts and requests; after each the host must answer, and nothing may lie where it must not."""
    base, outside = place / "base", place / "outside"
    outside.mkdir(parents=True)
    (outside / "x").write_text("untouched")
    write_random((base / "models" / "loras" / "given_high_noise.safetensors"), T2V)
    rng, report = random.Random(seed), Report()
    with small_host(base) as host:
        attacker = _Attacker(host, rng, report)
        before = attacker.snapshot(place)
        for number in range(tries):
            attacker.try_one(number)
            report.tries += 1
            for path in set(attacker.loras()) | set(attacker.runs()):
                report.check(_is_plain(path.name), f"try {number}: a file is called {path.name!a}")
            report.check(len(list(place.iterdir())) == 2, f"try {number}: something was written beside {base}")
        for path in attacker.snapshot(place) ^ before:
            report.check(False, f"{path} was changed, made or removed")
    report.facts |= dict(sorted(attacker.counts.items()))
    return report


def _is_plain(name: str) -> bool:
    return len(name.encode(errors="replace")) <= 255 and name.isprintable() and not set(name) & set('\\/:*?"<>|')


def small_graph() -> Json:
    """All our nodes over the miniature models; the LoRA that is merged comes from a file, so that most tries train nothing."""
    prompt = data_graph()
    prompt["dit"] = dit("wan_mini_high_noise.safetensors")
    prompt["lora"] = node("WanLoRAFromFile", lora_file="given_high_noise.safetensors", stage="auto")
    prompt["pair"] = node(
        "MergeStages", high=["lora", 0], name="made", precision="bf16", key_style="comfyui", rank=0, author="",
        description="", second_strength=1.0,
    )  # fmt: skip
    prompt["model"] = node("UNETLoader", unet_name="wan_mini_high_noise.safetensors", weight_dtype="default")
    prompt["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], high=["model", 0], clip=["clip", 0], vae=["vae", 0], prompt="x", negative_prompt="",
        width=64, height=64, num_frames=5, steps=1, cfg=1.0, seed=1, shift=0.0, boundary=0.0, sampler="euler",
        scheduler="simple", strength=1.0, compare=False, fps=16.0,
    )  # fmt: skip
    for name in ("latents", "text", "dit", "preview"):
        prompt[f"out_{name}"] = node("PreviewAny", source=[name, 0])
    return prompt


def training_graph() -> Json:
    """The small graph, with a training of one step."""
    prompt = small_graph()
    prompt["train"] = node(
        "TrainLoRAStage",
        dit=["dit", 0],
        latents=["latents", 0],
        text=["text", 0],
        **{**TRAIN, "stage": "high noise", "steps": 1},
    )
    return prompt


class _Attacker:
    """Makes the tries and judges the answers."""

    def __init__(self, host: Host, rng: random.Random, report: Report) -> None:
        self.host, self.rng, self.report = host, rng, report
        self.counts: dict[str, int] = {}
        self.outcome = ""
        info = host.object_info()
        self.known = {
            name: [*item["input"].get("required", {}), *item["input"].get("optional", {})]
            for name, item in info.items()
        }
        self.own = [name for name, item in info.items() if item["python_module"] == f"custom_nodes.{PACK.name}"]
        shipped = [json.loads(path.read_text("utf-8")) for path in sorted((PACK / "example_workflows").glob("*.json"))]
        self.graphs = [*[small_graph()] * 5, training_graph(), *(_short(ui_to_api(ui, info)) for ui in shipped)]
        self.log_read = 0
        self._put_run()

    def _put_run(self) -> None:
        """A run folder for the requests to ask for."""
        folder = self.host.base / "output" / "wan_train" / "runs" / RUN
        (folder / "previews").mkdir(parents=True)
        (folder / "previews" / "step-00000001.webp").write_bytes(b"RIFF")
        (folder / "job.json").write_text("{}")
        (folder / "events.jsonl").write_text('{"event": "step", "step": 1, "loss": NaN}\n5\n')

    def loras(self) -> list[Path]:
        """What lies in the folder of LoRAs."""
        return list((self.host.base / "models" / "loras").iterdir())

    def runs(self) -> list[Path]:
        """All run folders."""
        return list((self.host.base / "output" / "wan_train" / "runs").iterdir())

    def snapshot(self, place: Path) -> set[tuple[str, int, int]]:
        """Name, size and time of all files that no prompt may touch: the host's own, and those around its base folder."""
        allowed = [self.host.base / name for name in WRITTEN]
        roots = [place, find_host() or place]
        return {
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for root in roots
            for path in root.rglob("*")
            if path.is_file()
            and "__pycache__" not in path.parts
            and not any(path.is_relative_to(top) for top in allowed)
        }

    def try_one(self, number: int) -> None:
        """One prompt or request, and a look at the host after it."""
        if number % 4 == 3:
            request = hostile_request(RUN, self.rng)
            what = f"try {number}, request {request[:90]!a}"
            self._send(request, what)
        else:
            prompt, told = mutate(self.rng.choice(self.graphs), self.known, self.own, self.rng)
            what = f"try {number}, prompt: {'; '.join(told)}"
            self._queue(prompt, what)
        try:
            self.host.server.request("/system_stats")
        except (OSError, ValueError) as error:
            self.report.check(False, f"{what}: the host does not answer any more ({error})")
            self.host.server.check_alive()
        self._judge_log(what)
        with (self.host.base / "tmp" / "tries.txt").open(
            "a", encoding="utf-8"
        ) as file:  # for who wants to know what passed
            file.write(f"{what}: {self.outcome}\n")

    def count(self, name: str) -> None:
        """One more of these."""
        self.counts[name] = self.counts.get(name, 0) + 1
        self.outcome = name

    def _queue(self, prompt: Json, what: str) -> None:
        try:
            answer = self.host.server.request("/prompt", {"prompt": prompt, "client_id": self.host.server.client_id})
        except urllib.error.HTTPError as error:
            body = error.read()
            if (
                error.code >= 500
            ):  # what of the prompt is no graph at all, the host's own code breaks at; the log says where
                self.count("prompts that broke the host's own check")
                return
            answer = json.loads(body)
        for name, found in (answer.get("node_errors") or {}).items():
            for error in found["errors"]:
                self._judge_refusal(found["class_type"], name, error, what)
        if "prompt_id" not in answer:
            self.count("prompts refused by a check")
            return
        in_part = " but for the nodes that were refused" if answer.get("node_errors") else ""
        self._judge_end(self._wait(answer["prompt_id"]), in_part, what)

    def _judge_refusal(self, class_type: str, name: str, error: Json, what: str) -> None:
        trace = "".join((error.get("extra_info") or {}).get("traceback", []))
        told = f"{what}: a traceback from the check of {name} ({class_type}): {error['details']}: {trace[-300:]}"
        self.report.check(OURS not in trace, told)
        if class_type in self.own and error["type"] == "custom_validation_failed":
            self._judge_sentence(error["details"], what)

    def _wait(self, prompt_id: str) -> Json:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            entry = self.host.server.history(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.05)
        self.count("prompts stopped")
        self.host.interrupt(prompt_id)
        return self.host.wait(prompt_id, END_S)

    def _judge_end(self, entry: Json, in_part: str, what: str) -> None:
        kind, data = entry["status"]["messages"][-1]
        self.count(f"prompts taken{in_part}: {kind.replace('execution_', '')}")
        if kind != "execution_error":
            return
        trace, message = "".join(data["traceback"]), data["exception_message"].strip()
        if data["exception_type"].startswith("WanTrain."):
            self._judge_sentence(message, what)
            return
        self.count("errors of the host's own nodes and executor")
        told = f"{what}: {data['node_id']}: {data['exception_type']}: {message[:200]} {trace[-400:]}"
        self.report.check(OURS not in trace, told)

    def _judge_sentence(self, message: str, what: str) -> None:
        is_sentence = "\n" not in message and "Traceback" not in message and " object at 0x" not in message
        self.report.check(is_sentence and len(message) < 6000, f"{what}: no sentence: {message[:300]!a}")

    def _send(self, request: bytes, what: str) -> None:
        address = urlsplit(self.host.url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(request)
            try:
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            except TimeoutError:  # the host waits for the body that was promised
                self.count("requests left waiting for their body")
                return
            except ConnectionError:
                answer = b""
        if answer.startswith(b"HTTP/1.1 100"):  # Expect: 100-continue
            answer = answer.partition(b"\r\n\r\n")[2]
        status = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/") else "closed"
        self.count(f"requests answered {status}")
        self.report.check(not status.startswith("5"), f"{what}: {answer[:200]!a}")
        told = answer.partition(b"\r\n\r\n")[2]
        leaks = (
            b"Traceback" in answer
            or str(self.host.base).encode() in answer
            or (b"job.json" in told and b'"path"' in told)
        )
        self.report.check(not leaks, f"{what}: tells of this machine: {told[:300]!a}")

    def _new_log(self) -> str:
        """What the host has printed since the last try; a letter is a byte."""
        with self.host.server.log_path.open("rb") as log:
            log.seek(self.log_read)
            return log.read().decode("latin1")

    def _judge_log(self, what: str) -> None:
        """A route that raises, or a thread that dies, is told in the log alone."""
        text = self._new_log()
        self.log_read += len(text)
        for start in (
            "Error handling request",
            "Exception in thread",
            "Task exception was never retrieved",
            "Fatal Python error",
        ):
            found = text.find(start)
            if found >= 0:
                trace = text[found : found + 6000]
                self.report.check(OURS not in trace, f"{what}: the log says {trace[:1500]}")
                self.count("errors of the host in its log")


def _short(prompt: Json) -> Json:
    """An example workflow that takes no time where it is not refused: one step of everything."""
    for item in prompt.values():
        for name in ("steps", "preview_steps", "checkpoint_every"):
            if name in item["inputs"]:
                item["inputs"][name] = 1
        item["inputs"].pop("epochs", None)
    return prompt


CAMPAIGN = Campaign(attack=attack, short=16, long=500, needs_host=True)
