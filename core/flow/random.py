"""Randomness as a function: every draw is named by (seed, purpose, step, ...), so no generator state need be saved."""

import hashlib

import torch


def stream_seed(seed: int, *names: int | str) -> int:
    """A 63-bit seed that depends on `seed` and the names alone, the same on every machine."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: int | str) -> torch.Generator:
    """A fresh CPU generator for one named draw. Drawing on the CPU gives the same numbers whatever the device."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))
