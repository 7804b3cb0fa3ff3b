"""How far a rank has come in its step, on its host and on its GPU, for the others to see (`watch.py`).

The GPU tells it itself: between its kernels it writes a number into main memory, from where a thread reads it without any
call of CUDA. A call could wait for the GPU that hangs. Before ranks meet in a collective the number says so: whose last number
says "work" has not done its own, and whose says "sum" or "exchange" waits for others.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Host = Literal["own", "waits", "elsewhere"]  # its own part of a step; for others, or for its GPU; not in a step
Mark = Literal["work", "exchange", "sum", "rest"]  # what follows on the GPU; exchange: within a forward or a backward
Doing = Literal["gpu", "host", "waits", "elsewhere"]  # gpu, host: which of them has work of its own to do
MARKS: tuple[Mark, ...] = ("rest", "work", "exchange", "sum")
# A host that is ahead of its GPU waits in the middle of a forward, after about a thousand kernels. It must have queued a mark
# by then, else it can't be told from one that waits for a disk. Four blocks have some hundred kernels.
BLOCKS_A_MARK = 4

BlockSeam = Callable[..., Tensor]


@dataclass(frozen=True)
class RankPlace:
    """Where a rank is."""

    host: Host = "elsewhere"
    mark: Mark = "rest"  # the last one that the GPU has reached
    reached: int = 0  # its number
    queued: int = 0  # number of the last one that the GPU was given
    is_first: bool = False  # no step is over, or none as large: how long things take is not known
    group: int = 0  # ranks of one group reach the same marks

    @property
    def doing(self) -> Doing:
        """What the others would wait for."""
        if self.reached == self.queued:
            return "host" if self.host == "own" else self.host
        if self.mark == "rest":
            return "elsewhere"
        return "gpu" if self.mark == "work" else "waits"

    def written(self) -> str:
        """For `read`."""
        return json.dumps(astuple(self))

    @classmethod
    def read(cls, text: str) -> "RankPlace":
        """What `written` gave."""
        return cls(*json.loads(text))


class Progress:
    """Notes where this rank is. Costs the host two launches a mark, and nothing outside of steps."""

    def __init__(self) -> None:
        self._host: Host = "elsewhere"
        self._is_in_step = False
        self._queued, self._group = 0, 0
        self._most = 0  # tokens of a step that is over
        self._recent: deque[int] = deque([0], maxlen=2)  # tokens of the steps that may be under way
        self.open(torch.device("cpu"))

    def open(self, device: torch.device, group: int = 0) -> None:
        """Mark on this device. `group`: see `RankPlace`."""
        self._group = group
        self._there = torch.zeros(1, dtype=torch.int64, device=device)
        self._told = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")

    def place(self) -> RankPlace:
        """Where this rank is now. From any thread; waits for nothing."""
        queued = self._queued  # before what was reached, which may be further then
        reached, mark = divmod(int(self._told.item()), len(MARKS))
        is_first = not self._most or max(self._recent) > self._most
        return RankPlace(self._host, MARKS[mark], reached, max(queued, reached), is_first, self._group)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it this rank makes a step."""
        self._host, self._is_in_step = "own", True
        try:
            self.mark("work")
            yield
        except Exception:
            self._most = 0  # done again, it may be by another plan
            raise
        finally:
            with suppress(RuntimeError):  # the GPU has failed, which the next call tells
                self.mark("rest")
            self._host, self._is_in_step = "elsewhere", False

    def begun(self, tokens: int) -> None:
        """A step of all ranks, with so many tokens."""
        self._recent.append(tokens)

    def ended(self, tokens: int) -> None:
        """The GPU has done such a step."""
        self._most = max(self._most, tokens)

    def mark(self, mark: Mark = "work") -> None:
        """Tell what follows on the GPU. Nothing outside of a step, and where a CUDA graph is recorded."""
        if not self._is_in_step or (self._there.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        self._queued += 1
        self._there.fill_(self._queued * len(MARKS) + MARKS.index(mark))
        self._told.copy_(self._there, non_blocking=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it the host waits: for other ranks, or for its GPU."""
        before, self._host = self._host, "waits"
        try:
            yield
        finally:
            self._host = before

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around a collective within a forward or a backward."""
        self.mark("exchange")
        with self.waiting():
            yield
        self.mark("work")

    def marking(self, run_block: BlockSeam, blocks: Sequence[nn.Module], *, are_gathered: bool) -> BlockSeam:
        """The block seam with a mark before some of the blocks, in the forward and in the backward.

        `are_gathered`: the ranks bring each block together, so that all of them wait there for one that hangs.
        """
        mark: Mark = "exchange" if are_gathered else "work"
        marked = {id(block) for block in blocks[:: 1 if are_gathered else BLOCKS_A_MARK]}

        def run_marked(block: nn.Module, *inputs: Tensor) -> Tensor:
            if id(block) not in marked:
                return run_block(block, *inputs)
            self.mark(mark)
            x = run_block(block, *inputs)
            if x.requires_grad:
                x.register_hook(lambda _: self.mark(mark))
            return x

        return run_marked
