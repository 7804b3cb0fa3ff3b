"""ComfyUI-WanTrain: trains LoRAs for the Wan 2.1 / 2.2 video models inside ComfyUI, and without it.

Importing this needs neither ComfyUI nor torch: the command line is installed with the same package.
"""

from typing import Any

WEB_DIRECTORY = "./web"


def comfy_entrypoint() -> Any:
    """ComfyUI calls this."""
    from .nodes.extension import WanTrainExtension

    return WanTrainExtension()
