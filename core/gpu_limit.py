"""The most GPU memory that PyTorch's allocator may take in a process of ours.

Windows' driver, and WSL's, which is the same, does not say that a GPU's memory is out: it gives main memory in its place
("CUDA - Sysmem Fallback Policy", NVIDIA control panel), which makes steps very slow. With a limit at what is
free, the allocator gives back what it holds unused, and then says that memory is out, so that what a shortage leads to (a
leaner plan, VAE tiles) does its work. Linux's driver says so by itself.
"""

import platform

import torch


def is_driver_of_windows() -> bool:
    """Whether the GPU's driver is Windows': there, and in Linux inside it."""
    return platform.system() == "Windows" or "microsoft" in platform.release().lower()


def limit(device: torch.device, num_bytes: int | None = None) -> None:
    """Tensors may take no more of `device` than so much, and no more than is free where the driver would not say so.

    Nothing where that is no CUDA device.
    """
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    most = total if num_bytes is None else min(num_bytes, total)
    if is_driver_of_windows():  # what this process holds already is its own
        most = min(most, torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    torch.cuda.set_per_process_memory_fraction(most / total, device)


def lift(device: torch.device) -> None:
    """There is no limit any more."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def room(device: torch.device) -> int:
    """Bytes of `device` that tensors of this process may still take; 0 where that is no CUDA device."""
    if device.type != "cuda":
        return 0
    share = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if share is None:  # PyTorch before 2.7: a limit would not be known
        return 0
    total, reserved = torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_reserved(device)
    within = int(share(device) * total) - reserved
    unused = reserved - torch.cuda.memory_allocated(device)
    return max(min(within, torch.cuda.mem_get_info(device)[0]), 0) + unused
