"""Names of Wan weights: prefixes that packers put in front, and the table from diffusers' to official names."""

import re
from collections.abc import Iterable

# Longest first: "model.diffusion_model." is ComfyUI's full checkpoint, "net." and "model.model." other packers'.
PREFIXES = ("model.diffusion_model.", "model.model.", "diffusion_model.", "net.")

# Keys that follow the prefix in every Wan transformer, of any layout.
_FIRST_PARTS = ("blocks.", "patch_embedding.", "vace_blocks.")

# diffusers (transformer_wan.py, scripts/convert_wan_to_diffusers.py) -> official (wan/modules/model.py)
MODEL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
BLOCK_NAMES = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "attn1": "self_attn",
    "attn2": "cross_attn",
}
ATTENTION_NAMES = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}
_BLOCK_PATTERN = re.compile(r"((?:vace_)?blocks\.\d+\.)(.+)")
_ATTENTION_PATTERN = re.compile(r"((?:self_attn|cross_attn)\.)(.+)")
_DIFFUSERS_PATTERN = re.compile(r"condition_embedder\.|blocks\.\d+\.attn[12]\.")
_UNUSED_PATTERN = re.compile(r"blocks\.\d+\.attn2\.norm_added_q\.")


def to_official(name: str) -> str:
    """The official name of a weight or module that diffusers names `name`; an official name comes back unchanged."""
    block = _BLOCK_PATTERN.fullmatch(name)
    if block is None:
        return _rename(name, MODEL_NAMES)
    inner = _rename(block[2], BLOCK_NAMES)
    part = _ATTENTION_PATTERN.fullmatch(inner)
    return block[1] + (inner if part is None else part[1] + _rename(part[2], ATTENTION_NAMES))


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether the names (without prefix) follow diffusers."""
    return any(_DIFFUSERS_PATTERN.match(name) for name in names)


def is_unused(name: str) -> bool:
    """Whether a weight of diffusers' early I2V files, by its name there, belongs to no model: diffusers ignores it too."""
    return _UNUSED_PATTERN.match(name) is not None


def find_prefix(names: Iterable[str]) -> str:
    """The known prefix in front of the transformer's weights, or ""; other weights of the file have another one."""
    starts = {prefix: tuple(prefix + part for part in _FIRST_PARTS) for prefix in PREFIXES}
    for name in names:
        for prefix, prefixed_parts in starts.items():
            if name.startswith(prefixed_parts):
                return prefix
    return ""


def _rename(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name
