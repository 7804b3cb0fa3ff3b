"""Keeps libraries from the network, in the processes that are ours: the command line and the training process.

Not for ComfyUI's own process, whose other node packs may download as they like.
"""

import logging
import os
import sys

# What huggingface_hub, transformers, diffusers, datasets and kernels ask before they go out.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DISABLE_KERNEL_MAPPING": "1",
    "USE_HUB_KERNELS": "0",
    "DIFFUSERS_TRUST_REMOTE_KERNELS": "0",
}
# Fetches machine code from the hub and runs it; bitsandbytes does so as it is imported, on CPUs with bf16.
_FETCHES_CODE = "kernels"


def stay_offline() -> None:
    """From here on no library downloads anything in this process and those that it starts. Call it before their import."""
    os.environ.update(OFFLINE)
    sys.modules[_FETCHES_CODE] = None  # type: ignore[assignment]  # None: such a module is not found
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_call_to_fetch)


def _is_no_call_to_fetch(record: logging.LogRecord) -> bool:
    """False for a library's advice to install what is kept out here: it works without."""
    return f"pip install {_FETCHES_CODE}" not in record.getMessage()
