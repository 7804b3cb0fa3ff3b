"""Puts the kernels on a model: its element-wise arithmetic, the products of its linear layers, and the rerun of its blocks."""

from ..memory.precisions.fp8_compute import Fp8ComputeLinear
from ..memory.remaker import Remaker
from ..memory.rerun import keepable
from ..wan.model import WanTransformer
from .blocks import use_functions
from .ops import KernelOps


def use_kernels(model: WanTransformer) -> tuple[KernelOps, Remaker]:
    """Let the blocks' arithmetic run by kernels, in place. The attention, set before, can then be kept by `Rerun`.

    The linear layers' products are the caller's to put on: see `linears.make_product`, which wants these `ops`.
    """
    remaker = Remaker()
    quantize = any(isinstance(layer, Fp8ComputeLinear) for layer in model.blocks.modules())
    ops = KernelOps(remaker, quantize=quantize)
    model.ops = ops
    use_functions(model.blocks, ops)
    model.set_video_attend(keepable(model.attend))
    return ops, remaker
