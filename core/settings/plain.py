"""Memory options that nobody has chosen: None in `MemoryOptions`, and plain where no plan decides."""

from collections.abc import Mapping
from typing import Any

from .memory import MemoryOptions

# What each option comes to where neither a person nor a plan has chosen it. Jobs of schema 1 meant "auto" by it.
PLAIN: Mapping[str, Any] = {
    "checkpointing": True,
    "keep_attention": 0,
    "keep_linears": 0,
    "offload_linears": 0,
    "split_blocks": False,
    "ffn_pieces": 1,
    "offload_inputs": False,
    "offload_optimizer": False,
    "streamed_blocks": 0,
    "stream_from": "pinned",
    "mapped_blocks": 0,
}


def chosen(memory: MemoryOptions) -> dict[str, Any]:
    """The options of `PLAIN` that are not left to a plan, by name."""
    return {name: value for name in PLAIN if (value := getattr(memory, name)) is not None}


def without_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of options by name, without those that are plain: where a value had to be given, that one meant "auto"."""
    return {name: value for name, value in values.items() if not (name in PLAIN and _is_same(value, PLAIN[name]))}


def _is_same(value: Any, plain: Any) -> bool:
    return type(value) is type(plain) and value == plain  # 1 is not True, and a wrong type is refused by its name
