"""Every private or version-bound call of PyTorch: what may change with its next release stands here, and nowhere else.

The oldest PyTorch that is tested is 2.7, the least that ComfyUI supports (its README since August 2026; ComfyUI 0.20, of April
2026, named 2.4). `python run.py test --torch oldest` runs the tests with it. What
a release lacks is tried here, and answered by what does without.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

OLDEST = "2.7.0"

# The forward operators of `scaled_dot_product_attention`, as the dispatcher names them.
SDPA_OPS = frozenset(
    {
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_fused_attention_overrideable",
    }
)

# The products of linear layers, as the dispatcher names them -> which argument is the second factor, [in, out].
PRODUCT_OPS = {"aten::mm": 1, "aten::addmm": 2, "aten::_scaled_mm": 1}

_TRACES_OPTION = "autograd_cache_allow_custom_autograd_functions"
_torch: Any = torch  # whose private names a type checker does not know


@contextmanager
def saving_without_checksums() -> Iterator[None]:
    """`torch.save` leaves out the CRC-32 of each tensor, which takes longer than a fast disk. For files with a hash of ours."""
    serialization = _torch.serialization
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        yield
    finally:
        serialization.set_crc32_options(before)


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device computes in bf16 itself; PyTorch's answer is yes, too, where it is emulated."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


# (left, right, left_scale, right_scale, bias=, out_dtype=, use_fast_accum=): a product of fp8 matrices.
scaled_mm: Callable[..., Tensor] = _torch._scaled_mm

# Of lists of tensors, in place: one kernel for many.
foreach_copy_: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = _torch._foreach_copy_
foreach_add_: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = _torch._foreach_add_
foreach_mul_: Callable[[Sequence[Tensor], Tensor | float], None] = _torch._foreach_mul_
foreach_sub_: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = _torch._foreach_sub_
foreach_sign_: Callable[[Sequence[Tensor]], None] = _torch._foreach_sign_
foreach_zero_: Callable[[Sequence[Tensor]], None] = _torch._foreach_zero_

# The same, as new tensors.
foreach_mul: Callable[[Sequence[Tensor], Tensor | float], list[Tensor]] = _torch._foreach_mul
foreach_lerp: Callable[[Sequence[Tensor], Sequence[Tensor], float], list[Tensor]] = _torch._foreach_lerp

# (index of a device) -> its current stream as CUDA's own handle; None where PyTorch has no such function.
current_raw_stream: Callable[[int], int] | None = getattr(_torch._C, "_cuda_getCurrentRawStream", None)


def mm_to_fp32(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in fp32 from factors of 16 bits, without a pass of its own. TypeError before 2.8, RuntimeError on a CPU."""
    return torch.mm(left, right, out_dtype=torch.float32)  # type: ignore[call-overload]


def set_deterministic(on: bool, *, warn_only: bool = False) -> None:
    """What `torch.use_deterministic_algorithms` does, without its import of the compiler's settings, which takes seconds."""
    _torch._C._set_deterministic_algorithms(on, warn_only=warn_only)


def is_view(tensor: Tensor) -> bool:
    """Whether autograd takes it for a view of another tensor."""
    return bool(tensor._is_view())


def num_changes(tensor: Tensor) -> int:
    """How often the tensor was changed in place: torch's own counter, which the safety of its backward relies on."""
    return tensor._version


def cuda_driver_version() -> int:
    """As CUDA numbers it, 13020; 0 where PyTorch does not tell."""
    return int(getattr(_torch._C, "_cuda_getDriverVersion", lambda: 0)())


def end_allocating_to_pool(device_index: int, pool: Any) -> None:
    """Let tensors of the device come from ordinary memory again, after a CUDA graph's recording that failed."""
    _torch._C._cuda_endAllocateToPool(device_index, pool)


def load_compiler() -> tuple[type[Exception], type[Exception]]:
    """Import the compiler, which takes seconds. What it raises: at its limit of variants, and for any failure of its own."""
    from torch._dynamo import exc

    return exc.FailOnRecompileLimitHit, exc.TorchDynamoException


def allow_variants(number: int) -> None:
    """Let the compiler make at least so many variants of one function before it gives up; its own limit is 8."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, number)


def allowed_variants() -> int:
    """The limit that holds now."""
    from torch._dynamo import config

    return int(config.recompile_limit)


def keep_traces() -> None:
    """Let what was traced be found again at the next start, also where a quantized layer has a backward of its own.

    PyTorch 2.11 leaves such blocks out unless told so; what it compares is the trace with both directions of them in it.
    """
    from torch._functorch import config

    if hasattr(config, _TRACES_OPTION):
        setattr(config, _TRACES_OPTION, True)


def accept_kept_results() -> None:
    """Silence the warning that a checkpoint which keeps some results must not change them in place: ours do not."""
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_worth_telling)


def default_compile_cache() -> str:
    """The folder that the compiler keeps its results in, unless told otherwise."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return default_cache_dir()


def _is_worth_telling(record: logging.LogRecord) -> bool:
    return "context_fn is passed to torch.utils.checkpoint under torch.compile" not in record.getMessage()


def version_of(tensor: Tensor) -> int | None:
    """A number that rises with each change of the tensor in place; None where it is not counted."""
    return None if tensor.is_inference() else tensor._version
