"""Where else a run's diary is shown. Off by default: nothing leaves the machine."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from .option import TRAIN, Options, Widget, option

_ADDRESS = re.compile(r"https?://[^\s/]+\S*", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class TrackOptions(Options, group="track"):
    """Where else a run's diary is shown. It is no part of the job, so that no run, LoRA or checkpoint holds it.

    No name of another trainer leads here: a setup that is brought from elsewhere turns nothing on that leaves the machine.
    """

    tensorboard: str = option(
        "",
        help="Folder for TensorBoard files, in which each run gets a folder of its own.",
        more="A name alone is a folder beside the runs. Needs the package tensorboard.",
        in_key=False,
        widget=Widget(TRAIN, "tensorboard", 120),
    )
    wandb: str = option(
        "",
        help="Project on Weights & Biases that the run is logged to.",
        more="Needs the package wandb, and `wandb login` once. With WANDB_MODE=offline nothing is sent.",
        in_key=False,
        widget=Widget(TRAIN, "wandb_project", 121),
    )
    wandb_name: str = option(
        "",
        help="Name of the run on Weights & Biases.",
        more="Empty: the name of the LoRA, with its stage.",
        in_key=False,
        not_with={"wandb": ("",)},
        widget=Widget(TRAIN, "wandb_run_name", 122),
    )
    webhook: str = option(
        "",
        help="Address that is told of start, previews, end and failure, as JSON.",
        more="An https:// address, or the name of an environment variable that holds it: what stands here is saved in the"
        " workflow, and addresses of Discord and Slack are secrets. Both show the message.",
        in_key=False,
        widget=Widget(TRAIN, "webhook", 123),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.webhook and not (_ADDRESS.fullmatch(self.webhook) or _VARIABLE.fullmatch(self.webhook)):
            raise ConfigError(
                "webhook is neither an address that begins with http:// or https://, nor the name of an environment variable "
                "that holds one."
            )

    @property
    def is_on(self) -> bool:
        """Whether the diary is shown anywhere else."""
        return bool(self.tensorboard or self.wandb or self.webhook)
