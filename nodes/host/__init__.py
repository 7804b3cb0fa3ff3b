"""ComfyUI, as the nodes use it: all of its internals that the pack touches are in this folder and nowhere else.

What the host promises to packs is `comfy_api.latest`, which the nodes use themselves. Everything below is internal to it
and may change with a version.
"""

from .control import (
    SAMPLERS,
    SCHEDULERS,
    Interrupted,
    auto_devices,
    device_names,
    executing,
    free_vram,
    interrupt_again,
    interrupted,
    listens_locally,
    on_prompt,
    raise_if_interrupted,
    routes,
    send_event,
    show_progress,
    show_text,
    version,
)
from .describer import HostDescriber
from .encoders import HostTextEncoder, HostVideoEncoder, HostVisionEncoder
from .models import load_diffusion_model, load_umt5, load_vae, umt5_config
from .pictures import latent_picture
from .places import cache_path, note_unfinished, remember, reports_path, runs_path, vanished, work_path

__all__ = [
    "SAMPLERS",
    "SCHEDULERS",
    "HostDescriber",
    "HostTextEncoder",
    "HostVideoEncoder",
    "HostVisionEncoder",
    "Interrupted",
    "auto_devices",
    "cache_path",
    "device_names",
    "executing",
    "free_vram",
    "interrupt_again",
    "interrupted",
    "latent_picture",
    "listens_locally",
    "load_diffusion_model",
    "load_umt5",
    "load_vae",
    "note_unfinished",
    "on_prompt",
    "raise_if_interrupted",
    "remember",
    "reports_path",
    "routes",
    "runs_path",
    "send_event",
    "show_progress",
    "show_text",
    "umt5_config",
    "vanished",
    "version",
    "work_path",
]
