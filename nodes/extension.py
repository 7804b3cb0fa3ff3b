"""The pack as ComfyUI sees it."""

import logging

from comfy_api.latest import ComfyExtension, io

from ..core.packages import package_problems, release
from . import (
    NODES,
    check_routes,
    curve_routes,
    host,
    look_routes,
    report_routes,
    routes,
    run_routes,
    watch_page,
    words_routes,
)
from .host import folders
from .old_values import renew_prompt

REQUIRED_COMFYUI = "0.20"


class WanTrainExtension(ComfyExtension):
    """All nodes and routes."""

    async def on_load(self) -> None:
        _tell_problems()
        folders.offer_nano_models()
        routes.register()
        curve_routes.register()
        look_routes.register()
        run_routes.register()
        report_routes.register()
        check_routes.register()
        watch_page.register()
        words_routes.register()
        host.on_prompt(renew_prompt)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


def _tell_problems() -> None:
    """One line in the log for each thing that will not work. The nodes are listed all the same, so that saved workflows stay
    whole, and say it themselves before anything is cached."""
    log = logging.getLogger(__name__)
    version = host.version()
    if release(version) < release(REQUIRED_COMFYUI):
        log.error("ComfyUI-WanTrain needs ComfyUI %s or newer, this is %s: update ComfyUI.", REQUIRED_COMFYUI, version)
    for problem in package_problems():
        log.error("ComfyUI-WanTrain: %s", problem)
