"""What trades time for memory, and how blocks and attention are computed."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

MasterKind = Literal["pinned", "pageable", "mapped"]

# auto: kernels on a GPU where Triton works, else off. static and dynamic: by torch.compile, where a compiler works.
BlockMode = Literal["off", "kernels", "static", "dynamic"]  # how blocks run, once it is decided
Compile = Literal["auto", "off", "kernels", "static", "dynamic"]

CudaGraphs = Literal["auto", "off"]

# auto: what a plan of memory and time says is fastest, within what is chosen; manual: as it is set.
PlanMode = Literal["auto", "manual"]

# default: what PyTorch chooses; auto: the fastest that is right here, found by measuring; or one by its name.
Attention = Literal["default", "auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "cudnn", "flash", "efficient"]


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What trades time for memory, and faster kernels. Results change by rounding at most: attention and compile.

    None is "auto": a plan chooses, and without one it is plain (see `plain.py`). Whatever else stands here is a choice, which a
    plan keeps to, also where it is the plain value.
    """

    # Gradient checkpointing: keep only block inputs; recompute each block in the backward pass.
    checkpointing: bool | None = None
    keep_attention: int | None = None  # blocks that keep their self-attention instead of computing it again
    keep_linears: int | None = None  # blocks that keep what their linear layers give, and their self-attention
    split_blocks: bool | None = None  # recompute the three parts of a block one by one in the backward pass
    ffn_pieces: int | None = None  # chunked feed-forward: into so many pieces the tokens are cut, one after another
    offload_inputs: bool | None = None  # activation offload: block inputs wait for the backward pass in main memory
    offload_optimizer: bool | None = None  # AdamW's moments wait for the update in main memory
    # Block swap: blocks whose frozen weights stay in main memory and visit the device when needed.
    streamed_blocks: int | None = None
    stream_from: MasterKind | None = None
    mapped_blocks: int | None = (
        None  # of the swapped blocks, those memory-mapped from files, whatever the others come from
    )
    attention: Attention = "auto"
    compile: Compile = "auto"  # kernels: our own; static: torch.compile for each size of clips; dynamic: once for all
    cuda_graphs: CudaGraphs = "auto"  # record the kernels of a step of small clips, and launch them at once
    plan: PlanMode = "auto"
    budget_gb: float = 0.0  # most memory of the device, in GiB, that a run may take; 0: what is free

    def __post_init__(self) -> None:
        for name in ("keep_attention", "keep_linears", "streamed_blocks", "mapped_blocks"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} is a number of blocks, 0 or more; got {getattr(self, name)}.")
        self._check_pieces()
        self._check_mapped()
        for name in ("keep_attention", "keep_linears", "split_blocks", "offload_inputs", "streamed_blocks"):
            if getattr(self, name) and self.checkpointing is False:
                raise ConfigError(f"{name} needs checkpointing: switch it on, or leave {name} off.")
        if self.split_blocks and self.keep_linears:
            raise ConfigError("split_blocks saves what keep_linears would keep: leave one of them off.")
        if not 0.0 <= self.budget_gb < math.inf:
            raise ConfigError(f"budget_gb must be 0 (what is free) or a number of GB, got {self.budget_gb}.")

    def _check_mapped(self) -> None:
        if (self.mapped_blocks or 0) > (self.streamed_blocks or 0):
            streamed = "not set" if self.streamed_blocks is None else self.streamed_blocks
            raise ConfigError(
                f"mapped_blocks is {self.mapped_blocks}, but streamed_blocks is {streamed}: of the streamed blocks "
                "it says how many come from disk. Choose at most so many, or leave it at 0."
            )
        if self.mapped_blocks and self.stream_from == "mapped":
            raise ConfigError(
                "mapped_blocks has no meaning with stream_from mapped, where all streamed blocks come from disk: leave it at "
                "0, or choose pinned or pageable for the others."
            )

    def _check_pieces(self) -> None:
        pieces = 1 if self.ffn_pieces is None else self.ffn_pieces
        if pieces < 1:
            raise ConfigError(f"ffn_pieces is a number of pieces, 1 (the whole) or more; got {pieces}.")
        if pieces > 1 and self.checkpointing is False:
            raise ConfigError("ffn_pieces needs checkpointing: switch it on, or leave ffn_pieces at 1.")
        if pieces > 1 and self.split_blocks:
            raise ConfigError("ffn_pieces is for whole blocks: leave it at 1, or switch split_blocks off.")
