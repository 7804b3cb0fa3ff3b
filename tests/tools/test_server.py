"""A real ComfyUI, started, talked to and stopped; the demo's workflow file passes its checks."""

import json
import time
from pathlib import Path

import pytest
from wan_train.tools.server import PromptRefusedError, failure
from wan_train.tools.workflow import ui_to_api

PACK = Path(__file__).resolve().parents[2]


def image_prompt(width):
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 8, "batch_size": 1, "color": 255}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Look"}},
    }


def test_prompt_runs_and_its_events_arrive(host):
    prompt_id = host.queue(image_prompt(16))
    entry = host.wait(prompt_id)
    assert failure(entry, {}) is None
    assert entry["outputs"]["2"]["images"][0]["type"] == "temp"
    host.await_event("executed", prompt_id=prompt_id, node="2")
    host.await_event("execution_success", prompt_id=prompt_id)


def test_refused_prompt_names_node_and_input(host):
    with pytest.raises(PromptRefusedError, match=r"'EmptyImage': Value .* width") as caught:
        host.queue(image_prompt(-1))
    assert "1" in caught.value.answer["node_errors"]


def test_demo_workflow_passes_the_checks_and_can_be_stopped(host):
    ui = json.loads((PACK / "example_workflows" / "demo.json").read_text(encoding="utf-8"))
    prompt = ui_to_api(ui, host.object_info())
    prompt_id = host.queue(prompt, {"extra_pnginfo": {"workflow": ui}})
    host.await_event("execution_start", prompt_id=prompt_id)
    while host.server.history(prompt_id) is None:
        host.interrupt(prompt_id)
        time.sleep(0.2)
    assert "was stopped at" in str(failure(host.wait(prompt_id), prompt))
