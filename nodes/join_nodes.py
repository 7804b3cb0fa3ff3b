"""Several datasets in one run."""

import logging

from comfy_api.latest import io

from ..core.data.join import join, join_warnings
from ..core.data.report import describe_dataset
from ..core.data.types import Dataset
from ..core.errors import ConfigError
from .inputs import checked
from .model_nodes import CATEGORY
from .sockets import WanDataset

log = logging.getLogger(__name__)
MOST = 50  # datasets on one node; a joined one can be joined again


class JoinDatasets(io.ComfyNode):
    """Puts datasets together. Output: a description, no pixels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        one = WanDataset.Input("dataset", tooltip="From Dataset from Folder; each has its own settings.")
        return io.Schema(
            node_id="JoinDatasets",
            has_intermediate_output=True,  # its report comes from the host's cache too
            display_name="Join Datasets (Wan)",
            category=CATEGORY,
            description="Trains on several datasets in one run: other sizes, other clips, another concept, or pictures that"
            " keep what the model knows. Each keeps its own settings. A free input appears when the last one is connected.",
            search_aliases=["wan dataset", "merge datasets", "regularization", "several folders", "concat dataset"],
            inputs=[
                io.Autogrow.Input(
                    "datasets",
                    template=io.Autogrow.TemplatePrefix(one, prefix="dataset_", min=0, max=MOST),
                    tooltip="The datasets, from Dataset from Folder or another Join Datasets.",
                )
            ],
            outputs=[WanDataset.Output("dataset", display_name="dataset", tooltip="For Cache Latents and Cache T5.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, datasets: dict[str, Dataset]) -> io.NodeOutput:
        """One whose node is muted is not among them, whichever its place is."""
        found = [
            value for _, value in sorted(datasets.items(), key=lambda item: number_of(item[0])) if value is not None
        ]
        if not found:
            raise ConfigError("datasets has no wire: connect at least one Dataset from Folder that is not muted.")
        dataset = join(found)
        for sentence in join_warnings(dataset):
            log.warning("%s", sentence)
        return io.NodeOutput(dataset, ui={"text": [describe_dataset(dataset)]})


def number_of(name: str) -> int:
    """The place of an input among the others: dataset_2 before dataset_10."""
    return int("0" + "".join(filter(str.isdecimal, name)))


NODES = [JoinDatasets]
