"""A ComfyUI server as a child process, and the few HTTP calls that a program needs. Standard library only."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# Folders of the base directory that ComfyUI expects to find.
BASE_FOLDERS = ("custom_nodes", "input", "models", "output", "user")


class HostError(Exception):
    """The server did not start, refused the prompt, or a node failed. The message is one sentence."""


class PromptRefusedError(HostError):
    """The prompt did not pass the server's checks; `answer` is what the server said."""

    def __init__(self, message: str, answer: Json) -> None:
        super().__init__(message)
        self.answer = answer


class Server:
    """A running ComfyUI."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log_path
        self.client_id = uuid.uuid4().hex

    def request(self, path: str, body: Json | None = None, timeout: float = 120.0) -> Any:
        """GET `path`, or POST `body` to it; the answer as JSON, None if it is empty."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        with opener.open(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def object_info(self) -> Json:
        """Definitions of all node classes."""
        return self.request("/object_info")

    def queue(self, prompt: Json, extra_data: Json | None = None) -> str:
        """Queue an API prompt; returns its id. Raises PromptRefusedError with the node's title and the reason."""
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data or {}}
        try:
            return self.request("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read() or b"{}")
            raise PromptRefusedError(refusal(answer, prompt), answer) from error

    def history(self, prompt_id: str) -> Json | None:
        """The finished prompt's entry, or None while it waits or runs."""
        return self.request(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float, on_poll: Callable[[], None] = lambda: None) -> Json:
        """Wait until a prompt is finished, well or badly, and return its history entry."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.check_alive()
            entry = self.history(prompt_id)
            on_poll()
            if entry is not None:
                return entry
            time.sleep(0.1)
        raise HostError(f"ComfyUI did not finish within {timeout:.0f} s: see {self.log_path}.")

    def interrupt(self, prompt_id: str | None = None) -> None:
        """What the page's stop button does."""
        self.request("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def log_text(self) -> str:
        """Everything that the server printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def check_alive(self) -> None:
        """Raise HostError with the end of the log if the process is gone."""
        code = self.process.poll()
        if code is not None:
            last = " / ".join(line.strip() for line in self.log_text().splitlines()[-3:])
            raise HostError(f"ComfyUI stopped with code {code}: {last} (the whole log: {self.log_path}).")

    def stop(self) -> None:
        """End the process and its children."""
        _signal_tree(self.process, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            _signal_tree(self.process, getattr(signal, "SIGKILL", signal.SIGTERM))
            self.process.wait(120)


def _signal_tree(process: subprocess.Popen[bytes], number: int) -> None:
    if os.name == "nt":
        if process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # also a trainer whose server is gone


def free_port() -> int:
    """A port that nobody listens on at this moment.

    None that the system chooses itself, for whatever connects somewhere: it is still to be free when a server has started.
    """
    chance = random.SystemRandom()
    for _ in range(1000):
        port = chance.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise HostError("No port is free on this machine.")


@contextlib.contextmanager
def run_server(
    python: Path,
    host: Path,
    base: Path,
    *,
    port: int = 0,
    extra_args: tuple[str, ...] = (),
    start_timeout: float = 300.0,
    environ: Mapping[str, str] | None = None,
    on_cpu: bool = True,
) -> Iterator[Server]:
    """Start ComfyUI with its own base directory, wait until it answers, stop it at the end. `on_cpu`: without its GPUs.

    Models, inputs, outputs, settings and custom nodes all lie below `base`; the log is `base/server.log`.
    """
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    options = [
        *(["--cpu"] if on_cpu else []),
        "--base-directory",
        str(base),
        "--port",
        str(port),
        "--disable-auto-launch",
        "--disable-api-nodes",
    ]
    # The default database lies in ComfyUI's own folder, whatever the base directory is.
    options += ["--database-url", "sqlite:///:memory:", *extra_args]
    quiet = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})}
    log_path = base / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(python), "main.py", *options],
            cwd=host,
            env={**os.environ, **quiet, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=os.name != "nt",  # Ctrl+C in the terminal is ours to handle
        )
        server = Server(process, port, log_path)
        try:
            _await_start(server, start_timeout)
            yield server
        finally:
            server.stop()


def _await_start(server: Server, timeout: float) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        server.check_alive()
        with contextlib.suppress(OSError):
            server.request("/system_stats", timeout=5.0)
            return
        time.sleep(0.3)
    raise HostError(f"ComfyUI did not answer within {timeout:.0f} s: see {server.log_path}.")


def refusal(answer: Json, prompt: Json) -> str:
    """One sentence for an answer of POST /prompt that names errors."""
    for node_id, found in answer.get("node_errors", {}).items():
        error = found["errors"][0]
        return f"'{_title(node_id, prompt)}': {error['message']}: {error.get('details') or 'no details'}."
    error = answer.get("error", {})
    return f"ComfyUI refused the prompt: {error.get('message', answer)} {error.get('details', '')}".strip() + "."


def failure(entry: Json, prompt: Json) -> str | None:
    """One sentence if the prompt of a history entry failed or was stopped, else None."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            message = str(data["exception_message"]).strip()
            return f"'{_title(data['node_id'], prompt)}': {message}"
        if kind == "execution_interrupted":
            return f"The run was stopped at '{_title(data['node_id'], prompt)}'."
    return None if entry["status"]["status_str"] == "success" else "The run failed without a message."


def _title(node_id: str, prompt: Json) -> str:
    node = prompt.get(str(node_id), {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or f"node {node_id}"


def output_files(entry: Json, base: Path) -> dict[str, list[Path]]:
    """Node id to the files that the node reported, of a history entry."""
    found: dict[str, list[Path]] = {}
    for node_id, output in entry.get("outputs", {}).items():
        for items in output.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and "filename" in item:
                    path = base / item.get("type", "output") / item.get("subfolder", "") / item["filename"]
                    found.setdefault(node_id, []).append(path)
    return found
