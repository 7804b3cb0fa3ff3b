"""Has a GPU's libraries ready before the first step, on a thread, while the model is read.

cuBLAS, cuDNN and PyTorch's own kernels are loaded when they are first used, which takes seconds of the first step. Here each
kind of thing that a step does is done once, small; and where there is room, steps of a model of one block at each size.
"""

import gc
import logging
import threading
import time
from typing import TYPE_CHECKING

import torch

from ..adapters.peft_hooks import finish_importing_adapters
from ..memory.attention import load_attention
from ..plan.decision import Decision
from ..plan.sizes import Sizes
from ..switching import switching_soon
from .trial import Trial

if TYPE_CHECKING:
    from ..kernels.warm import Warming

log = logging.getLogger(__name__)
ROWS = 128  # of the activations


class WarmUp:
    """Under way from the start. `wait` before the first step."""

    def __init__(self, decision: Decision, sizes: Sizes, trial: Trial, warming: "Warming | None") -> None:
        """`warming`: the kernels that are made ready beside, which the trial needs."""
        self._decision, self._sizes, self._trial, self._warming = decision, sizes, trial, warming
        self._thread = threading.Thread(target=self._try, daemon=True, name="warm-up")
        self._thread.start()

    def wait(self) -> None:
        """Until it is done."""
        self._thread.join()
        torch.cuda.empty_cache()  # of what was tried

    def _try(self) -> None:
        try:  # the adapter is put on the model beside it
            with switching_soon(), torch.cuda.device(self._decision.device):
                use_once(self._decision, self._sizes)
                if self._warming is not None:
                    self._warming.wait()
                begin = time.perf_counter()
                count = self._trial.run()
                gc.collect()  # a block that runs by kernels refers to itself, and would stay for long: 0.7 GB in bf16
                torch.cuda.current_stream().synchronize()
                log.info("Trying %d sizes with one block took %.1f s.", count, time.perf_counter() - begin)
        except Exception as error:  # whatever it is, the step that needs it can say more
            log.info("The GPU's libraries could not be made ready: %s: %s", type(error).__name__, error)


def use_once(decision: Decision, sizes: Sizes) -> None:
    """A product of matrices, attention, their gradients, the gradients' norm and an update, of zeros: nothing is drawn."""
    device, dtype = decision.device, decision.dtype
    heads, width = sizes.num_heads, sizes.dim // sizes.num_heads
    weight = torch.zeros(heads * width, heads * width, dtype=dtype, device=device)
    down = torch.zeros(16, heads * width, device=device, requires_grad=True)  # [rank, dim], as an adapter's
    x = torch.zeros(ROWS, heads * width, dtype=dtype, device=device)
    y = x @ weight + (x @ down.to(dtype).T).sum(1, keepdim=True)
    q = y.view(1, ROWS, heads, width)
    attended = load_attention(decision.attention, device)(q, q, q)
    (attended.float() - 1).pow(2).mean().backward()
    torch.nn.utils.clip_grad_norm_([down], 1.0)
    finish_importing_adapters()  # an optimizer imports the compiler, which must not happen beside
    torch.optim.AdamW([down], fused=True).step()
