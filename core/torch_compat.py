"""Every private or version-bound call of PyTorch: what may change with its next release stands here, and nowhere else.

The oldest PyTorch is 2.7, the least that ComfyUI supports since August 2026 (its README); `python run.py test --torch
oldest` runs the tests with it. What an older or newer release lacks is tried here, and answered by what does without.
"""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device computes in bf16 itself; PyTorch's answer is yes, too, where it is emulated."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


scaled_mm = torch._scaled_mm  # type: ignore[reportPrivateImportUsage]  # there is no public name before 2.10
