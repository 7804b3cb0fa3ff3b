"""An address that is told how a run goes: JSON by POST, in a form that Discord and Slack show as a message."""

import hashlib
import json
import os
import urllib.request
from typing import Any

from ..errors import ConfigError
from ..train.events import Event
from .run_facts import RunFacts

TIMEOUT_S = 10.0
_STATES = {"start": "started", "preview": "training", "finished": "finished", "stopped": "stopped", "error": "failed"}


class Webhook:
    """Start, previews, end and failure of one run. ConfigError for a variable that holds no address."""

    name, drops = "The webhook", False
    kinds = ("step", *_STATES)

    def __init__(self, address: str, run: RunFacts) -> None:
        self._address = address if "://" in address else _from_environment(address)
        self.key = f"webhook {hashlib.sha256(self._address.encode()).hexdigest()[:16]}"
        self.is_new = False
        self._run = run
        self._last: Event = {}

    def take(self, event: Event) -> None:
        """Tell what is worth a message; OSError where it does not arrive."""
        if event["event"] == "step":
            self._last = event
        elif event["event"] in _STATES:
            self._post(self._message(event))

    def _message(self, event: Event) -> dict[str, Any]:
        state = _STATES[event["event"]]
        step, loss = event.get("step", self._last.get("step", 0)), self._last.get("loss")
        words = f"{self._run.title}: {state}, step {step} of {self._run.steps}"
        words += f", loss {loss:.4f}" if isinstance(loss, (int, float)) else ""
        words += f". {event['message']}" if event["event"] == "error" else ""
        found = {
            "run": self._run.name,
            "stage": self._run.stage,
            "state": state,
            "step": step,
            "steps": self._run.steps,
            "loss": loss,
            "time": event["time"],
            "text": words,
            "content": words[:2000],  # Discord's limit
        }
        return found | {name: event[name] for name in ("message", "lora") if name in event}

    def _post(self, message: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "ComfyUI-WanTrain"}
        request = urllib.request.Request(self._address, json.dumps(message).encode(), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            answer.read(2**16)

    def flush(self) -> None:
        """Each message was sent at once."""

    def close(self, _state: str, /) -> None:
        """The end was told by its event."""


def _from_environment(name: str) -> str:
    address = os.environ.get(name, "").strip()
    if not address.lower().startswith(("http://", "https://")):
        raise ConfigError(
            f"webhook names the environment variable {name}, which holds no address here: set it to one that begins with "
            "https://, and start ComfyUI or the command again."
        )
    return address
