"""Which checkpoints are made and kept, and where they go as LoRAs."""

from dataclasses import dataclass

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class SavingOptions(Options, group="saving"):
    """Checkpoints by epochs, as LoRAs of their own, and the best one. None of it changes what is trained."""

    every_epochs: int = option(
        0,
        help="Epochs between two checkpoints, in place of checkpoint_every.",
        zero="checkpoint_every decides",
        most=1_000_000,
        unit="epochs",
        born=2,
        in_key=False,
        widget=Widget(TRAIN, "checkpoint_every_epochs", 170, most=100_000),
        musubi="save_every_n_epochs",
        diffusion_pipe="save_every_n_epochs",
    )
    copies: bool = option(
        False,
        help="Copy each checkpoint's LoRA to the loras folder, to be tried while the run goes on.",
        more="Names are such as NAME_high_noise_step000250. Press R to see a new one in the loaders.",
        born=2,
        in_key=False,
        widget=Widget(TRAIN, "checkpoints_to_loras", 171),
    )
    keep_copies: int = option(
        5,
        help="Number of such copies to keep.",
        more="Only files that the run wrote itself, and that nobody has changed, are removed.",
        zero="all",
        most=1_000_000,
        born=2,
        in_key=False,
        widget=Widget(TRAIN, "keep_copies", 172, most=1000),
        only_with={"copies": (True,)},
    )
    keep_best: bool = option(
        False,
        help="Also keep the best checkpoint by its score, and that of the lowest held-out loss, however old they are.",
        more="The held-out samples (see held_out of the dataset) are then measured at each checkpoint too.",
        page="The last checkpoint is the best unless its numbers say that something broke: in 267 runs on the nano bench"
        " (miniature models, 160 steps, 2 held-out clips of each concept) the last came to 48.7 %, that of the lowest held-out"
        " loss to 36.2, the best that there was to 48.9 %. In a long run that learns its clips by heart an older one may be"
        " better: look at the previews.",
        born=2,
        in_key=False,
        widget=Widget(TRAIN, "keep_best", 173),
    )
