"""The constants of the predictions: what was counted, measured or fitted, once, and stands in `constants.json`.

The file says of each what it means and where it comes from; `benchmarks/fit_constants.py` writes it. Units are activations
[B, L, D] of one block.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("constants.json")


@dataclass(frozen=True, kw_only=True)
class Constants:
    """In bytes, seconds, units, and times of something; see the file."""

    runtime_vram: int
    graph_vram: int
    runtime_ram: int
    overhead_vram: int
    compiled_saved: float
    compiled_peak: float
    compiled_peak_ffn: float
    attention_again: float
    products_kept: float
    fp8_compute: float
    pieces_peak: float
    parts_kept: float
    parts_again: float
    sustained: float
    sustained_fp8: float
    sustained_attention: float
    cross_rate: float
    fp8_launches: float
    quantized_launches: float
    traffic_16_forward: float
    traffic_16_backward: float
    traffic_32_forward: float
    traffic_32_backward: float
    compiled_traffic_forward: float
    compiled_traffic_backward: float
    kernels_traffic_forward: float
    kernels_traffic_backward: float
    fp8_traffic_forward: float
    fp8_traffic_backward: float
    kernels_fp8_traffic_forward: float
    kernels_fp8_traffic_backward: float
    launches_forward: int
    launches_backward: int
    compiled_launches_forward: int
    compiled_launches_backward: int
    kernels_launches_forward: int
    kernels_launches_backward: int
    kernels_graphed_forward: int
    kernels_graphed_backward: int
    kernels_fp8_launches: float
    split_launches: float
    graph_gap_s: float
    piece_launches: float
    part_traffic_self_attn: float
    part_traffic_cross_attn: float
    part_traffic_ffn: float


def read_constants(path: Path = PATH) -> Constants:
    """Those of a file. KeyError or TypeError for a file that has others: it is a part of this package."""
    found = json.loads(path.read_text(encoding="utf-8"))["constants"]
    return Constants(**{name: entry["value"] for name, entry in found.items()})


_in_use = [read_constants()]


def constants() -> Constants:
    """Those that predictions are made with."""
    return _in_use[-1]


@contextmanager
def using(other: Constants) -> Generator[None, None, None]:
    """Predict with others within the block: how they are fitted."""
    _in_use.append(other)
    try:
        yield
    finally:
        _in_use.pop()
