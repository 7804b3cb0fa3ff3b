"""The host's memory, devices, interrupts, progress, messages and server."""

import gc
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from comfy.cli_args import args
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS
Interrupted = mm.InterruptProcessingException  # what the host's own code raises where the user pressed Stop


def free_vram() -> None:
    """Unload the host's models from every device, and give the memory back to the driver."""
    mm.unload_all_models()
    gc.collect()
    mm.soft_empty_cache()


def device_names() -> list[str]:
    """Devices that training can run on, and groups of them that train one run together.

    Two names for the CPU let two experts train side by side on it. Of many GPUs, groups of two and four neighbours are here.
    """
    if mm.cpu_state == mm.CPUState.CPU:
        return ["auto", "cpu", "cpu:0", "cpu:1", "all", "cpu:0,cpu:1"]
    gpus = _gpus()
    groups = [gpus[start : start + size] for size in (2, 4) if size < len(gpus) for start in range(0, len(gpus), size)]
    return ["auto", *gpus, "cpu", "all", *(",".join(group) for group in groups if len(group) > 1)]


def auto_devices() -> list[str]:
    """What `auto` may choose from."""
    return _gpus() or ["cpu"]


def _gpus() -> list[str]:
    is_used = mm.cpu_state != mm.CPUState.CPU and torch.cuda.is_available()
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if is_used else []


def executing() -> tuple[str, Any]:
    """The execution id of the node that is being executed, and the workflow that it was queued with; "", None outside."""
    context = get_executing_context()
    if context is None:
        return "", None
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    extra = next((item[3] for item in running if item[1] == context.prompt_id), {})
    return context.node_id, (extra.get("extra_pnginfo") or {}).get("workflow")


def interrupted() -> bool:
    """Whether the user pressed Stop."""
    return mm.processing_interrupted()


def raise_if_interrupted() -> None:
    """Raise the host's interrupt, and clear its flag."""
    mm.throw_exception_if_processing_interrupted()


def show_progress(node_id: str, value: float, total: float) -> None:
    """Move the node's progress bar."""
    get_progress_state().update_progress(node_id=node_id, value=value, max_value=total, image=None)


def show_text(node_id: str, text: str) -> None:
    """Write a line on the node."""
    PromptServer.instance.send_progress_text(text, node_id)


def send_event(name: str, data: dict[str, Any]) -> None:
    """Send an event to the pack's front end."""
    PromptServer.instance.send_sync(name, data)


def interrupt_again() -> None:
    """Set the flag that an `Interrupted` has cleared, so that whoever asks next is interrupted too."""
    mm.interrupt_current_processing()


def routes() -> Any:
    """The table of the host's server to add routes to."""
    return PromptServer.instance.routes


def on_prompt(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have every request to queue a prompt changed before the host checks it."""
    PromptServer.instance.add_on_prompt_handler(change)


def version() -> str:
    """Of the host."""
    import comfyui_version

    return comfyui_version.__version__


def listens_locally() -> bool:
    """Whether the server answers this machine alone, and was not opened to pages of other servers."""
    places = [place.strip() for place in args.listen.split(",")]
    return not args.enable_cors_header and all(place == "::1" or place.startswith("127.") for place in places)
