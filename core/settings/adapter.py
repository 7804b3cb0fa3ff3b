"""Size and place of the adapter."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from .option import TRAIN, Options, Widget, option
from .patterns import RankRule, patterns_of, rank_rules

MOST_RANK = 4096
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
        page="16 or 32 is enough for most concepts. On the nano bench (miniature models, 160 steps, 3 seeds) rank 4 came to"
        " 44 %, 16 to 52, 32 to 55 and 64 to 53 %; of the last three none differs from another by more than seeds do.",
        least=1,
        most=MOST_RANK,
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
        least=0.0,
        most=1e6,
        zero="the rank",
        hint="; the usual choice is the rank",
        page="With OFT it has no effect, and the rank is the size of the blocks that are turned.",
        widget=Widget(TRAIN, "alpha", 4, advanced=False, is_required=True, least=0.0, most=4096.0, step=1.0),
        musubi="network_alpha",
        aitoolkit="network.linear_alpha",
        simpletuner="lora_alpha",
    )
    targets: tuple[str, ...] = option(
        PARTS,
        help="Which linear layers of the blocks get a LoRA.",
        page="On the nano bench (miniature models, 160 steps, 3 seeds) self attention alone came to 29 %, the feed-forward"
        " alone to 31, attention to 50 and all to 52 %; a model that has learnt nothing has 25 %.",
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
        not_with={"kind": ("oft",)},
        musubi="network_dropout",
        aitoolkit="network.dropout",
        simpletuner="lora_dropout",
        diffusion_pipe="adapter.dropout",
    )
    kind: str = option(
        "lora",
        help="What is trained on the frozen model.",
        page="On the nano bench (miniature models, 160 steps, 3 seeds, all at the same learning rate) lora came to 52 %, oft to"
        " 44, lokr to 25, which is nothing learnt, and with lokr_full to 40: at a LoRA's learning rate LoKr hardly moves in so"
        " short a run. dora, loha and tlora differed from lora by no more than seeds do; but with loha 89 % of videos without"
        " the trigger word stayed as asked, with oft 90, with lora all.",
        methods="adapters.kinds",
        born=2,
        at_birth="lora",
        widget=Widget(TRAIN, "adapter", 80),
        aitoolkit="network.type",
        simpletuner="lora_type",
        diffusion_pipe="adapter.type",
    )
    rslora: bool = option(
        False,
        help="Scale by alpha / sqrt(rank) in place of alpha / rank (rsLoRA).",
        more="A high rank then learns as strongly as a low one: keep alpha where it is when you raise the rank.",
        page="The file holds an alpha that every loader turns into the same strength.",
        born=2,
        at_birth=False,
        not_with={"kind": ("oft",)},
        widget=Widget(TRAIN, "rslora", 81),
    )
    include: str = option(
        "",
        help="Train only the layers in whose names one of these patterns is found, one pattern a line.",
        more="A pattern is a regular expression, or simply a part of a name, such as self_attn. Empty: all that targets"
        " chooses.",
        page="Names are like `blocks.0.self_attn.q`, `blocks.0.cross_attn.k` and `blocks.0.ffn.2`.",
        born=2,
        at_birth="",
        widget=Widget(TRAIN, "adapter_include", 82, multiline=True),
        musubi="network_args",
        aitoolkit="network.network_kwargs.only_if_contains",
    )
    exclude: str = option(
        "",
        help="Leave out the layers in whose names one of these patterns is found, one pattern a line.",
        more="As adapter_include, which it comes after.",
        born=2,
        at_birth="",
        widget=Widget(TRAIN, "adapter_exclude", 83, multiline=True),
        musubi="network_args",
        aitoolkit="network.network_kwargs.ignore_if_contains",
    )
    ranks: str = option(
        "",
        help="Another rank for some layers: lines of the form PATTERN = RANK, or PATTERN = RANK, ALPHA.",
        more="The first line whose pattern is found in a layer's name counts for it; such as cross_attn = 8. Without an"
        " alpha of its own a layer has that of all.",
        born=2,
        at_birth="",
        widget=Widget(TRAIN, "adapter_ranks", 84, multiline=True),
    )

    lokr_factor: int = option(
        0,
        help="Into how many parts LoKr divides the widths of a layer: the larger, the smaller the file.",
        more="4, 8 or 16 are usual; with 4 the file is large and learns the most.",
        zero="as near to the square root of the width as there is a divisor",
        most=4096,
        born=2,
        at_birth=0,
        only_with={"kind": ("lokr",)},
        widget=Widget(TRAIN, "lokr_factor", 85),
        aitoolkit="network.lokr_factor",
    )
    lokr_full: bool = option(
        False,
        help="Let LoKr train its second matrix whole, without a rank: the most that it can learn, in a larger file.",
        more="rank and alpha then have no effect.",
        born=2,
        at_birth=False,
        only_with={"kind": ("lokr",)},
        widget=Widget(TRAIN, "lokr_full", 86),
        aitoolkit="network.lokr_full_rank",
    )

    start_from: str = option(
        "",
        help="A LoRA file that the training starts from, in place of a new LoRA: its path.",
        more="Any trainer's file for this model. It is brought to this rank, and the result holds what the file had learnt.",
        page="A file of a higher rank is cut to the best that fits, which you are told with what is lost. LoKr, LoHa, DoRA and"
        " OFT start from a file of their own kind with the same sizes. The optimizer starts anew; a run that was stopped goes"
        " on by itself and needs no file.",
        born=2,
        at_birth="",
        in_key=False,  # the file's content is
        widget=Widget(TRAIN, "start_from", 87),
        musubi="network_weights",
        aitoolkit="network.pretrained_lora_path",
        simpletuner="init_lora",
        diffusion_pipe="adapter.init_from_existing",
    )
    merge_into_base: str = option(
        "",
        help="A LoRA file that is added to the model's weights while training: its path.",
        more="The new LoRA learns what is still missing. Load both when you generate: the new file does not hold the old one. A"
        " training adapter for a distilled model goes here, too, and is left out when you generate.",
        page="Such as a LoRA of few steps or of a style, beside which the new one will be used. A training adapter"
        " (AI-Toolkit's assistant_lora_path) takes the distillation out of a distilled model while you train. Switch"
        " preview_with_merged off then. It is faster than contrastive_guidance, but in long runs the distillation gets lost;"
        " there is no such adapter for distilled Wan models of full size yet. For distilled miniature models one was made (nine"
        " trainings): LoRAs taught with it showed their concept in 35 % of videos there, and 81 % had the rest as asked; taught"
        " there without it 23 and 68 %, taught on the plain model 31 and 86 %. So train on the plain model if there is one; if"
        " there is none, an adapter is clearly better than training without it. GGUF models and the precision ara can't take"
        " one in.",
        born=2,
        at_birth="",
        in_key=False,  # the file's content is
        widget=Widget(TRAIN, "merge_into_base", 88),
        musubi="base_weights",
        aitoolkit="model.assistant_lora_path",
    )
    merge_strength: float = option(
        1.0,
        help="Strength of the LoRA of merge_into_base.",
        least=-100.0,
        most=100.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "merge_strength", 89, least=-10.0, most=10.0, step=0.05),
        musubi="base_weights_multiplier",
    )

    rank_dropout: float = option(
        0.0,
        help="Share of the LoRA's ranks that is left out while training, other ones for each clip.",
        more="The ranks then depend less on each other. LoKr and LoHa leave out numbers of their result in place of ranks.",
        page="As kohya's scripts and musubi-tuner have it: what is left counts 1 / (1 - rank_dropout) times.",
        least=0.0,
        below=1.0,
        born=2,
        at_birth=0.0,
        not_with={"kind": ("oft",)},
        widget=Widget(TRAIN, "rank_dropout", 140, most=0.95, step=0.01),
        musubi="network_args.rank_dropout",
        aitoolkit="network.network_kwargs.rank_dropout",
    )
    module_dropout: float = option(
        0.0,
        help="The chance that the LoRA of a layer is left out of a training batch.",
        more="Each layer has a draw of its own, in every batch.",
        page="As kohya's scripts and musubi-tuner have it: the other layers count as ever. A layer that is left out gets the"
        " gradient 0.",
        least=0.0,
        below=1.0,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "module_dropout", 141, most=0.95, step=0.01),
        musubi="network_args.module_dropout",
        aitoolkit="network.network_kwargs.module_dropout",
    )
    oft_constraint: float = option(
        0.0,
        help="The most that OFT may turn the results of a layer: the length of all its rotations together.",
        more="A smaller number keeps the model nearer to what it was; 1 is a small change.",
        page="It is the file's alpha, with which ComfyUI cuts the rotations in the same way.",
        zero="no limit",
        most=1e6,
        born=2,
        at_birth=0.0,
        only_with={"kind": ("oft",)},
        widget=Widget(TRAIN, "oft_constraint", 142, most=1000.0, step=0.1),
    )
    tlora_min_rank: int = option(
        0,
        help="Ranks of T-LoRA that are trained at the highest noise of the stage.",
        more="At its lowest noise all ranks are.",
        zero="half of the rank",
        most=MOST_RANK,
        born=2,
        at_birth=0,
        only_with={"kind": ("tlora",)},
        widget=Widget(TRAIN, "tlora_min_rank", 143, most=1024),
    )
    tlora_power: float = option(
        1.0,
        help="How T-LoRA's number of ranks falls with the noise: 1 is a straight line.",
        more="Above 1 it falls early, and most ranks are trained at low noise alone; below 1 it falls late.",
        above=0.0,
        most=100.0,
        born=2,
        at_birth=1.0,
        only_with={"kind": ("tlora",)},
        widget=Widget(TRAIN, "tlora_power", 144, least=0.1, most=10.0, step=0.1),
    )
    tlora_orthogonal: bool = option(
        True,
        help="Let the rows of T-LoRA's first matrix start at right angles to each other.",
        more="So that its ranks learn different things, without which leaving some out would do little.",
        page="The paper starts both matrices in this way and takes the start off again, for which a file would need twice the"
        " rank; here the second matrix starts at 0, as in a LoRA.",
        born=2,
        at_birth=True,
        only_with={"kind": ("tlora",)},
        widget=Widget(TRAIN, "tlora_orthogonal", 145),
    )

    @property
    def included(self) -> tuple[re.Pattern[str], ...]:
        """Patterns of `include`; none where all layers are wanted."""
        return patterns_of(self.include, "adapter_include")

    @property
    def excluded(self) -> tuple[re.Pattern[str], ...]:
        """Patterns of `exclude`."""
        return patterns_of(self.exclude, "adapter_exclude")

    @property
    def is_random(self) -> bool:
        """Whether something is left out at random while training, which has to come again where a forward is run again."""
        return any((self.dropout, self.rank_dropout, self.module_dropout))

    @property
    def rank_rules(self) -> tuple[RankRule, ...]:
        """Rules of `ranks`, of which the first that fits counts."""
        return rank_rules(self.ranks, "adapter_ranks", MOST_RANK)

    def warnings(self) -> list[str]:
        """What is probably not meant, one sentence each."""
        found = self._strength_warning()
        if self.merge_strength != type(self)().merge_strength and not self.merge_into_base:
            found.append("merge_strength has no effect without a file in merge_into_base.")
        if self.kind == "oft" and self.dropout:
            found.append(
                "dropout has no effect with oft, which turns a layer's results: rank_dropout and module_dropout have."
            )
        if self.kind == "tlora" and self.tlora_min_rank > self.rank:
            found.append(
                f"tlora_min_rank ({self.tlora_min_rank}) is more than the rank ({self.rank}): all ranks are trained at every"
                " noise level, as in a LoRA."
            )
        return found

    def _strength_warning(self) -> list[str]:
        usual = type(self)()
        if self.kind == "oft" or (self.kind == "lokr" and self.lokr_full):
            return []
        if self.rank == usual.rank or self.alpha != usual.alpha or self.rslora:
            return []
        return [
            f"rank is {self.rank} and alpha is still {self.alpha:g}, so the LoRA is trained at {self.alpha / self.rank:.3g}"
            " times its usual strength (alpha / rank): set alpha to the rank, or to 0, which means the rank."
        ]

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError(f"targets is empty, so nothing would be trained: choose from {', '.join(PARTS)}.")
        super().__post_init__()
        for target in self.targets:
            if self.targets.count(target) > 1:
                raise ConfigError(f"targets names '{target}' twice.")
        _ = self.included, self.excluded, self.rank_rules  # each refuses what it can't read
