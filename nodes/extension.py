"""The pack as ComfyUI sees it."""

import logging

from comfy_api.latest import ComfyExtension, io

from . import NODES, folders, routes

REQUIRED_COMFYUI = (0, 20, 0)


class WanTrainExtension(ComfyExtension):
    """All nodes and routes."""

    async def on_load(self) -> None:
        _check_host_version()
        folders.offer_nano_models()
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


def _check_host_version() -> None:
    import comfyui_version

    version = tuple(int(part) for part in comfyui_version.__version__.split(".")[:3] if part.isdigit())
    if version < REQUIRED_COMFYUI:
        wanted = ".".join(map(str, REQUIRED_COMFYUI))
        logging.getLogger(__name__).error(
            "ComfyUI-WanTrain needs ComfyUI %s or newer, this is %s: update ComfyUI.",
            wanted,
            comfyui_version.__version__,
        )
