"""A real ComfyUI for tests: a child process with its own base directory, driven over HTTP and websocket.

Used as `from wan_train.tests.host_server import start_host`; the fixture lies in conftest.py.
"""

import asyncio
import contextlib
import json
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ..tools.demo import LEFT_OUT
from ..tools.server import HostError, Server, run_server
from .host_packs.warm_start import ADDRESS

Json = dict[str, Any]

WARM_START = Path(__file__).parent / "host_packs" / "warm_start"  # by which its training processes are forks
PATIENCE_S = 600.0  # a test that hangs fails in the end; a slow machine with others' tests on it may take long
BINARY_KINDS = {1: "preview", 3: "text", 4: "preview"}  # of ComfyUI's binary websocket messages


@dataclass(frozen=True)
class Event:
    """One websocket message. For binary ones `data` is {"kind": "preview" or "text", "bytes": the payload}."""

    time: float  # time.monotonic() of its arrival
    type: str
    data: Json


class Host:
    """A running ComfyUI with a websocket that listens from the start."""

    def __init__(self, server: Server, base: Path) -> None:
        self.server = server
        self.base = base
        self.events: list[Event] = []
        self._ended: set[str] = set()  # prompts of which no event comes any more
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
        self._thread.start()
        if not self._ready.wait(120):
            raise HostError(f"The websocket of {server.url} did not open.")

    @property
    def url(self) -> str:
        """Address without a slash at the end."""
        return self.server.url

    def queue(self, prompt: Json, extra_data: Json | None = None) -> str:
        """Queue an API prompt; returns its id. Raises PromptRefusedError where a check fails."""
        return self.server.queue(prompt, extra_data)

    def wait(self, prompt_id: str, timeout: float = PATIENCE_S) -> Json:
        """Wait for the history entry of a prompt that `queue` has queued, finished well or badly, and for all its events."""
        entry = self.server.wait(prompt_id, timeout)
        end = time.monotonic() + timeout
        while prompt_id not in self._ended and self._thread.is_alive():
            if time.monotonic() >= end:
                raise HostError(f"The last event of the prompt {prompt_id} did not come within {timeout:.0f} s.")
            time.sleep(0.01)
        return entry

    def run(self, prompt: Json, timeout: float = PATIENCE_S) -> Json:
        """Queue and wait."""
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """What the page's stop button does."""
        self.server.interrupt(prompt_id)

    def object_info(self) -> Json:
        """Definitions of all node classes."""
        return self.server.object_info()

    def log_text(self) -> str:
        """Everything that the server printed so far."""
        return self.server.log_text()

    def await_event(self, kind: str, timeout: float = PATIENCE_S, **fields: Any) -> Event:
        """The first event of a type whose data has these fields; waits for it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for event in list(self.events):
                if event.type == kind and all(event.data.get(key) == value for key, value in fields.items()):
                    return event
            time.sleep(0.05)
        raise HostError(f"No event '{kind}' with {fields} came within {timeout:.0f} s.")

    def close(self) -> None:
        """Close the websocket."""
        self._stop.set()
        self._thread.join(10)

    async def _listen(self) -> None:
        address = f"{self.server.url.replace('http', 'ws', 1)}/ws?clientId={self.server.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            self._ready.set()
            while not self._stop.is_set() and not socket.closed:
                with contextlib.suppress(asyncio.TimeoutError):
                    self._take(await socket.receive(timeout=0.2))

    def _take(self, message: aiohttp.WSMessage) -> None:
        now = time.monotonic()
        if message.type is aiohttp.WSMsgType.TEXT:
            parsed = json.loads(message.data)
            data = parsed.get("data") or {}
            self.events.append(Event(now, parsed["type"], data))
            if parsed["type"] == "executing" and data.get("node") is None:  # the last that ComfyUI says of a prompt
                self._ended.add(data.get("prompt_id", ""))
        elif message.type is aiohttp.WSMsgType.BINARY:
            (number,) = struct.unpack(">I", message.data[:4])
            data = {"kind": BINARY_KINDS.get(number, str(number)), "bytes": message.data[4:]}
            self.events.append(Event(now, "binary", data))


def install_pack(pack: Path, base: Path) -> Path:
    """Copy a pack into the base directory's custom_nodes, without what a user's copy would not have.

    What Python has compiled goes along, which it knows again by the files' times, but not what it is just writing.
    """
    left_out = [*(name for name in LEFT_OUT if name != "__pycache__"), "*.pyc.*"]
    target = base / "custom_nodes" / pack.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(pack, target, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    return target


@contextlib.contextmanager
def start_host(
    host_path: Path,
    base_dir: Path,
    *,
    port: int = 0,
    packs: Sequence[Path] = (),
    extra_args: Sequence[str] = (),
    on_cpu: bool = True,
) -> Iterator[Host]:
    """Start ComfyUI from `host_path` with copies of `packs`; everything it reads and writes lies below `base_dir`."""
    for pack in [*packs, *([WARM_START] if ADDRESS in os.environ else [])]:
        install_pack(pack, base_dir)
    python = Path(sys.executable)
    temporary = base_dir / "tmp"  # holds the locks on devices: two hosts of two test processes need not take turns
    temporary.mkdir(parents=True, exist_ok=True)
    environ = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    options = {"port": port, "extra_args": tuple(extra_args), "environ": environ, "on_cpu": on_cpu}
    with run_server(python, host_path, base_dir, **options) as server:
        host = Host(server, base_dir)
        try:
            yield host
        finally:
            host.close()
