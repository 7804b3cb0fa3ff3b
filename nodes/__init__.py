"""The node pack: one thin file a node family over the training core."""

from . import (
    after_nodes,
    caption_nodes,
    check_nodes,
    compare_nodes,
    data_nodes,
    join_nodes,
    merge_nodes,
    model_nodes,
    nano_nodes,
    preview_nodes,
    routes,
    split_nodes,
    timestep_nodes,
    train_nodes,
)

NODES = [
    *model_nodes.NODES,
    *caption_nodes.NODES,
    *data_nodes.NODES,
    *join_nodes.NODES,
    *train_nodes.NODES,
    *timestep_nodes.NODES,
    *merge_nodes.NODES,
    *preview_nodes.NODES,
    *compare_nodes.NODES,
    *nano_nodes.NODES,
    *after_nodes.NODES,
    *split_nodes.NODES,
    *check_nodes.NODES,
]

__all__ = ["NODES", "routes"]
