"""Size and place of the adapter."""

from dataclasses import dataclass

from ..errors import ConfigError
from .option import TRAIN, Options, Widget, option

PARTS = ("self_attn", "cross_attn", "ffn")  # parts of a block whose linear layers can have an adapter

TARGET_SETS = {
    "attention and ffn": ("self_attn", "cross_attn", "ffn"),
    "attention": ("self_attn", "cross_attn"),
    "self attention": ("self_attn",),
}


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options, group="adapter"):
    """Size and place of the LoRA. The change of a weight is (alpha / rank) * up @ down."""

    rank: int = option(
        16,
        help="Rank of the LoRA: its capacity, and its file size.",
        page="16 or 32 is enough for most concepts.",
        least=1,
        most=4096,
        widget=Widget(TRAIN, "rank", 3, advanced=False, is_required=True, most=1024),
        musubi="network_dim",
        aitoolkit="network.linear",
        simpletuner="lora_rank",
        diffusion_pipe="adapter.rank",
    )
    alpha: float = option(
        16.0,
        help="The LoRA is scaled by alpha / rank.",
        more="Usually equal to rank.",
        least=1e-6,
        most=1e6,
        hint="; the usual choice is the rank",
        widget=Widget(TRAIN, "alpha", 4, advanced=False, is_required=True, least=0.001, most=4096.0, step=1.0),
        musubi="network_alpha",
        aitoolkit="network.linear_alpha",
        simpletuner="lora_alpha",
    )
    targets: tuple[str, ...] = option(
        PARTS,
        help="Which linear layers of the blocks get a LoRA.",
        values=PARTS,
        widget=Widget(TRAIN, "targets", 12, is_required=True, values=tuple(TARGET_SETS.items())),
        musubi="network_args",
        aitoolkit="network.network_kwargs.only_if_contains",
    )
    dropout: float = option(
        0.0,
        help="Share of the LoRA's inputs set to zero while training.",
        least=0.0,
        below=1.0,
        widget=Widget(TRAIN, "dropout", 13, is_required=True, most=0.95, step=0.01),
        musubi="network_dropout",
        aitoolkit="network.dropout",
        simpletuner="lora_dropout",
        diffusion_pipe="adapter.dropout",
    )

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError(f"targets is empty, so nothing would be trained: choose from {', '.join(PARTS)}.")
        super().__post_init__()
        for target in self.targets:
            if self.targets.count(target) > 1:
                raise ConfigError(f"targets names '{target}' twice.")
