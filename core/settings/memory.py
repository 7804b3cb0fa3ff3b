"""What trades time for memory, and how blocks and attention are computed."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .option import AUTO, MODEL, SWITCH, Options, Widget, option

MasterKind = Literal["pinned", "pageable", "mapped"]

# auto: kernels on a GPU where Triton works, else off. static and dynamic: by torch.compile, where a compiler works.
BlockMode = Literal["off", "kernels", "static", "dynamic"]  # how blocks run, once it is decided
Compile = Literal["auto", "off", "kernels", "static", "dynamic"]

CudaGraphs = Literal["auto", "off"]

JoinBatches = Literal["auto", "on", "off"]

# auto: what a plan of memory and time says is fastest, with what is chosen here; manual: as it is chosen here.
PlanMode = Literal["auto", "manual"]

# default: what PyTorch chooses; auto: the fastest that is right here, found by measuring; or one by its name.
Attention = Literal["default", "auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "cudnn", "flash", "efficient"]

_SAME = "The result is the same."
# Before None stood for auto, the default of a widget did: what it showed, and what the option is then.
_WAS_ON = ((True, None), (False, False))
_WAS_OFF = ((False, None), (True, True))
_NUMBER = ((0, None), (-1, 0))  # a number's widget: 0 is auto, and -1 none
_PIECES = ((1, None), (-1, 1), (0, None))


def _switch(name: str, place: int, old: tuple[tuple[bool, bool | None], ...] = _WAS_OFF) -> Widget:
    return Widget(MODEL, name, place, values=SWITCH, old=old)


def _number(name: str, place: int) -> Widget:
    return Widget(MODEL, name, place, least=-1, most=1000, values=_NUMBER)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Options, group="memory"):
    """What trades time for memory, and faster kernels. Results change by rounding at most: attention and compile.

    None: with plan auto the plan chooses; with manual it is the plain value, which is off, 0, or on for checkpointing.
    """

    checkpointing: bool | None = option(
        None,
        help="Gradient checkpointing: of each block only the input is kept.",
        more="The rest is computed again in the backward pass. auto: where the memory is too small without. off is faster,"
        f" but needs many times the memory. {_SAME}",
        in_plans="gradient checkpointing",
        in_plans_off="no gradient checkpointing",
        in_key=False,
        widget=Widget(MODEL, "checkpointing", 2, is_required=True, values=SWITCH, old=_WAS_ON),
        musubi="gradient_checkpointing",
        aitoolkit="train.gradient_checkpointing",
        simpletuner="gradient_checkpointing",
        diffusion_pipe="activation_checkpointing",
    )
    keep_attention: int | None = option(
        None,
        help="Selective checkpointing: blocks that keep the result of their self-attention.",
        more="The backward pass does not compute it again: faster, for one block input's worth of memory each. 0: auto;"
        f" -1: none. {_SAME}",
        most=10_000,
        unit="blocks",
        zero="none",
        in_plans="attention of {} blocks kept",
        in_plans_off="no attention kept",
        in_key=False,
        widget=_number("keep_attention", 6),
    )
    keep_linears: int | None = option(
        None,
        help="Selective checkpointing: blocks that keep what their linear layers and their self-attention give.",
        more="The backward pass does not compute it again: faster still, for nine block inputs' worth of memory each in a"
        f" 14B model. Not with split_blocks. 0: auto; -1: none. {_SAME}",
        most=10_000,
        unit="blocks",
        zero="none",
        in_plans="linear layers of {} blocks kept",
        in_plans_off="no linear layers kept",
        in_key=False,
        widget=_number("keep_linears", 12),
    )
    split_blocks: bool | None = option(
        None,
        help="Checkpointing in parts: the three parts of a block are recomputed one by one.",
        more=f"About half the GPU memory that a block's backward pass takes, for a little more time. {_SAME}",
        page="The parts are self-attention, cross-attention and feed-forward. Queries, keys, values and the"
        " cross-attention are computed once more for it. Not with keep_linears; with LoRA dropout it is not compiled by"
        " static or dynamic.",
        in_plans="gradient checkpointing of each third of a block",
        in_plans_off="gradient checkpointing of whole blocks",
        in_key=False,
        widget=_switch("split_blocks", 11),
    )
    ffn_pieces: int | None = option(
        None,
        help="Chunked feed-forward: pieces in which the tokens go through it, one after another.",
        more="4 take a quarter to a third less of what a block's backward pass takes, at hardly any cost in time for long"
        " clips. Not with split_blocks, which saves more. 1: auto; -1: whole. The result is the same up to rounding.",
        least=1,
        most=1024,
        unit="pieces",
        in_plans="feed-forward chunked into {}",
        in_plans_off="feed-forward whole",
        in_key=False,
        widget=Widget(MODEL, "ffn_pieces", 13, least=-1, most=64, values=_PIECES),
        simpletuner="feed_forward_chunk_size",
    )
    offload_inputs: bool | None = option(
        None,
        help="Activation offload: block inputs wait for the backward pass in main memory.",
        more=f"They are what checkpointing keeps. Less GPU memory for long clips. {_SAME}",
        in_plans="activation offload",
        in_plans_off="no activation offload",
        in_key=False,
        widget=_switch("offload_inputs", 5),
        musubi="gradient_checkpointing_cpu_offload",
    )
    offload_optimizer: bool | None = option(
        None,
        help="Optimizer offload: AdamW's two moments wait in main memory.",
        more="They take twice the size of the LoRA in fp32, and pass through the GPU at each update. For high ranks on"
        f" small cards. No effect on adamw8bit, whose state is a quarter. {_SAME}",
        in_plans="optimizer state in main memory",
        in_plans_off="optimizer state on the GPU",
        in_key=False,
        widget=_switch("offload_optimizer", 16),
    )
    streamed_blocks: int | None = option(
        None,
        help="Block swap: blocks whose frozen weights stay in main memory.",
        more="They visit the GPU when they are needed: less GPU memory for some time. A 14B model has 40 blocks, 0.7 GB"
        f" each in bf16, 0.35 GB in fp8. 0: auto; -1: none. {_SAME}",
        most=10_000,
        unit="blocks",
        zero="none",
        in_plans="block swap of {} blocks",
        in_plans_off="no block swap",
        in_key=False,
        widget=_number("streamed_blocks", 3),
        musubi="blocks_to_swap",
        aitoolkit="model.layer_offloading_transformer_percent",
        simpletuner="musubi_blocks_to_swap",
        diffusion_pipe="blocks_to_swap",
    )
    stream_from: MasterKind | None = option(
        None,
        help="Where swapped blocks are kept.",
        more="pinned memory: main memory that the GPU reads by itself, the fastest. pageable memory: ordinary main memory."
        " files: memory-mapped files in output/wan_train/cache, for machines short of memory.",
        page="They lie in the folder blocks there; delete them when nothing trains. Recipes call the three pinned,"
        " pageable and mapped.",
        in_plans="swapped blocks from {}",
        in_key=False,
        widget=Widget(
            MODEL,
            "stream_from",
            4,
            values=((AUTO, None), ("pinned memory", "pinned"), ("pageable memory", "pageable"), ("files", "mapped")),
            old=(("pinned", None), ("pageable", "pageable"), ("mapped", "mapped")),
        ),
        musubi="use_pinned_memory_for_block_swap",
    )
    mapped_blocks: int | None = option(
        None,
        help="Memory-mapped weights: of the swapped blocks, how many come from files.",
        more="For a machine a little short of main memory. The files lie in output/wan_train/cache, and are read while"
        f" other blocks compute. Not with stream_from files, where all come from files. 0: auto; -1: none. {_SAME}",
        page="They are spread evenly. At most streamed_blocks.",
        most=10_000,
        unit="blocks",
        zero="none",
        in_plans="{} blocks memory-mapped",
        in_plans_off="no blocks memory-mapped",
        in_key=False,
        widget=_number("mapped_blocks", 14),
    )
    attention: Attention = option(
        "auto",
        help="How attention is computed.",
        more="auto: the fastest of those installed whose gradients are right on this GPU, measured at the start. default:"
        " as PyTorch chooses. Or one by its name.",
        page="On the CPU auto is what PyTorch chooses.",
        in_key=False,
        widget=Widget(MODEL, "attention", 7),
        musubi="sdpa",
        simpletuner="attention_mechanism",
    )
    compile: Compile = option(
        "auto",
        help="How the model's blocks run.",
        more="auto: kernels on a GPU where Triton works (Windows: triton-windows), else off. kernels: our own, ready for"
        " any size of clips. static: torch.compile, once for each size of clips; dynamic: once for all sizes; the first"
        " steps take long then. off: PyTorch's own operators, slower and with more memory.",
        page="The kernels are for all that lies between the products of matrices, and a block takes half the memory with"
        " them. They need Triton, on Windows pip install triton-windows, and a C compiler; without them the run goes on as"
        " with off and says so. With dynamic the first steps take minutes. off is a quarter slower for clips and up to"
        " half as fast for pictures. The result is the same up to rounding.",
        in_plans="blocks compiled ({})",
        in_plans_off="no compilation",
        in_key=False,
        widget=Widget(MODEL, "compile", 8),
        musubi="compile",
        aitoolkit="model.compile",
        simpletuner="dynamo_backend",
        diffusion_pipe="compile",
    )
    cuda_graphs: CudaGraphs = option(
        "auto",
        help="CUDA graphs: the kernels of a step are recorded once and launched together.",
        more="Else the GPU has to wait for each. auto: where all batches are small (images) and the whole model is on the"
        " GPU. off: never. The result is the same.",
        page="Small is up to 8,192 tokens in a 14B model, more in a smaller one, of at most 8 sizes; the LoRA has no"
        " dropout.",
        in_plans="CUDA graphs",
        in_plans_off="no CUDA graphs",
        in_key=False,
        widget=Widget(MODEL, "cuda_graphs", 15),
    )
    join_batches: JoinBatches = option(
        "auto",
        help="Batches that gradient_accumulation adds up go through the model together, where they are small.",
        more="A GPU is not full with one small image. auto: on a GPU, with batch_size 1 and samples of one size, where it"
        " is expected to be faster. on: wherever that can be. off: one after another. A step is the same either way, up to"
        " rounding.",
        page="Together they have 4,096 tokens at most: four images of 512x512. Noise, noise levels, captions and the mean of"
        " the losses are those of the batches apart. Without gradient_accumulation there is nothing to join: a larger"
        " batch would be another step, which is what batch_size is for. Samples of several sizes, an adapter with dropout"
        " and a run over several GPUs are trained one batch after another: a step of four pictures in five sizes has three"
        " sizes in the mean, so that little could go together. On an H200, a 14B model in bf16, pictures of 512x512"
        " and gradient_accumulation 4, a step took 0.448 s joined and 0.497 s apart, and 49 and 34 GB.",
        in_key=False,
        widget=Widget(MODEL, "join_batches", 17),
    )
    deterministic: bool = option(
        False,
        help="The same run gives the same LoRA, bit for bit, also where it was stopped and resumed.",
        more="On the same kind of GPU, with the same driver and PyTorch. Without it a GPU adds numbers up in any order, and two"
        " runs differ by rounding, which grows with the steps. Steps take longer, those of clips most.",
        page="On one H200 a small model gave the same bits after 12 steps: in one go, again, and stopped and resumed. Larger"
        " models were not tried. There a step of a 14B model in bf16 took 0.63 seconds in place of 0.49 for a picture of"
        " 1024x1024, and 3.97 in place of 2.39 for 832x480 with 33 frames: the attention, which is then flash in place of"
        " cudnn, takes 2.4 times as long. Attention is flash, efficient, or a package of FlashAttention whose backward can be"
        " deterministic. cudnn is refused, and so is compile static or dynamic,"
        " which choose their kernels by timing. The plan that was chosen at the start is kept in the run's folder (plan.json),"
        " and a resumed run takes it again. You are told when the result will differ all the same: with another GPU, driver,"
        " PyTorch or memory options than before, or when memory runs out. On a CPU runs are so in any case.",
        in_key=False,
        widget=Widget(MODEL, "deterministic", 18),
    )
    plan: PlanMode = option(
        "auto",
        help="Who chooses the memory options that are auto.",
        more="auto: before a run, its GPU is measured, and they are chosen so that the steps are fast and fit into memory;"
        " what you set to another value stays. manual: auto is off then, or 0, and on for checkpointing. The result is the"
        " same.",
        page="See below.",
        in_key=False,
        widget=Widget(MODEL, "plan", 9),
    )
    budget_gb: float = option(
        0.0,
        help="Most GPU memory in GB that a run may take.",
        more="To leave room for other programs.",
        page="It counts beside the few hundred MB of the driver. On the CPU it has no effect with plan manual; with auto"
        " the run is planned as for a GPU of that size.",
        least=0.0,
        most=1e6,
        zero="what is free",
        unit="GB",
        in_key=False,
        widget=Widget(MODEL, "budget_gb", 10, most=10_000.0, step=0.5),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_pieces()
        self._check_mapped()
        self._check_deterministic()
        for name in ("keep_attention", "keep_linears", "split_blocks", "offload_inputs", "streamed_blocks"):
            if getattr(self, name) and self.checkpointing is False:
                raise ConfigError(f"{name} needs checkpointing: switch it on, or leave {name} off.")
        if self.split_blocks and self.keep_linears:
            raise ConfigError("split_blocks saves what keep_linears would keep: leave one of them off.")

    def _check_deterministic(self) -> None:
        if not self.deterministic:
            return
        if self.attention == "cudnn":
            raise ConfigError(
                "deterministic is on, but attention is cudnn, whose backward does not give the same bits each time: set"
                " attention to auto, flash or efficient."
            )
        if self.compile in ("static", "dynamic"):
            raise ConfigError(
                f"deterministic is on, but compile is {self.compile}: torch.compile chooses its kernels by timing them, and so"
                " others in another process. Set compile to auto, kernels or off."
            )

    def _check_mapped(self) -> None:
        streamed, mapped = self.streamed_blocks or 0, self.mapped_blocks or 0
        if mapped > streamed:
            raise ConfigError(
                f"mapped_blocks is {mapped}, but streamed_blocks is {streamed}: of the streamed blocks it says how many"
                " come from disk. Choose at most so many, or leave it at 0."
            )
        if mapped and self.stream_from == "mapped":
            raise ConfigError(
                "mapped_blocks has no meaning with stream_from mapped, where all streamed blocks come from disk: leave it"
                " at 0, or choose pinned or pageable for the others."
            )

    def _check_pieces(self) -> None:
        pieces = self.ffn_pieces or 1
        if pieces > 1 and self.checkpointing is False:
            raise ConfigError("ffn_pieces needs checkpointing: switch it on, or leave ffn_pieces at 1.")
        if pieces > 1 and self.split_blocks:
            raise ConfigError("ffn_pieces is for whole blocks: leave it at 1, or switch split_blocks off.")
