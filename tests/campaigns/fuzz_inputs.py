"""Good files of every kind that the pack reads, tiny, and what mutation makes of them."""
# ruff: noqa: ARG005  every fault takes chance, bytes and other files

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.wan.gguf.helpers import WAN, make_blocks, plain, write_gguf

SIZE, FRAMES = (48, 32), 6  # of pictures and clips
CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
}
MODEL = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32)
CONFIG = {"config": '{"transformer": {"num_heads": 2, "text_dim": 32}}'}
LORA_PATHS = ("blocks.0.self_attn.q", "blocks.0.ffn.2")
EDGES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)

# Kind of a try to the name of its file; a dataset's kinds are those of its media, and captions.
NAMES = {
    **{suffix: f"try.{suffix}" for suffix in (*CODECS, "gif", "webp", "avif", "jpg", "bmp")},
    "apng": "try.png",
    "png": "try.png",
    "png16": "try.png",
    "palette": "try.png",
    "cmyk": "try.jpg",
    "caption": "try.txt",
    "model": "try.safetensors",
    "fp8": "try.safetensors",
    "gguf": "try.gguf",
    "index": "try.safetensors.index.json",
    "config": "config.json",
    "lora": "try.safetensors",
    "peft": "adapter_model.safetensors",
    "recovery": "try.safetensors",
    "weights": "try.safetensors",
    "pickle": "try.pth",
}


def make_bases(folder: Path) -> dict[str, bytes]:
    """The bytes of a good file of each kind, by kind; `folder` is for what can only be written to a file."""
    bases = {suffix: _clip(folder / f"base.{suffix}", *codec) for suffix, codec in CODECS.items()}
    pictures: dict[str, tuple[str, str, dict[str, Any]]] = {
        "gif": ("GIF", "P", {"save_all": True}),
        "webp": ("WEBP", "RGBA", {"save_all": True}),
        "avif": ("AVIF", "RGB", {"save_all": True}),
        "apng": ("PNG", "RGBA", {"save_all": True}),
        "png": ("PNG", "RGBA", {}),
        "png16": ("PNG", "I;16", {}),
        "palette": ("PNG", "P", {"transparency": 0}),
        "jpg": ("JPEG", "RGB", {"progressive": True}),
        "cmyk": ("JPEG", "CMYK", {}),
        "bmp": ("BMP", "RGB", {}),
    }
    Image.init()
    for kind, (file_format, mode, options) in pictures.items():
        if file_format in Image.SAVE:
            bases[kind] = _picture(folder / "picture", file_format, mode, options)
    bases["caption"] = "a caf\u00e9 on a hill, [trigger]".encode()
    weights = _weights()
    scaled = {**weights, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    scaled["blocks.0.ffn.0.weight"] = weights["blocks.0.ffn.0.weight"].to(torch.float8_e4m3fn)
    scaled["blocks.0.ffn.0.scale_weight"] = torch.tensor(0.5)
    bases["model"], bases["fp8"] = save(weights, CONFIG), save(scaled, CONFIG)
    bases["gguf"] = _gguf(folder / "base.gguf", weights)
    bases["index"] = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "try-part.safetensors")}).encode()
    bases["config"] = json.dumps({"_class_name": "WanTransformer3DModel", "num_attention_heads": 2}).encode()
    bases["lora"] = save(_lora("diffusion_model.", alpha=True), {"modelspec.timestep_range": "875,1000"})
    bases["peft"] = save(
        _lora("transformer.", alpha=False), {"lora_adapter_metadata": '{"lora_alpha": 8, "alpha_pattern": {"q": 2}}'}
    )
    bases["recovery"] = save(_lora("diffusion_model.transformer_1.", alpha=False))
    bases["weights"] = save(
        {"shared.weight": torch.zeros(8, 4), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(4, 4)}
    )
    stream = io.BytesIO()
    torch.save({"shared.weight": torch.zeros(8, 4), "norm.weight": torch.ones(4, dtype=torch.bfloat16)}, stream)
    bases["pickle"] = stream.getvalue()
    return bases


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A few random faults: flipped bits, edges of numbers, pieces lost, doubled or taken from another file."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8, 20))):
        rng.choice(_FAULTS)(rng, raw, others)
    return bytes(raw)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """The value with one part of it exchanged for something hostile."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {**value, rng.choice(("", "\0", "\ud800", "x" * 5000, "blocks.99999999999.q")): value[key]}
        return {**value, key: mutate_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], mutate_json(rng, value[index]), *value[index + 1 :]]
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:
        return json.dumps(mutate_json(rng, json.loads(value)))
    return rng.choice(HOSTILE)(rng)


def pack_safetensors(header: object, body: bytes) -> bytes:
    """A safetensors file of a header that need not be true."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def unpack_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, body) of a good file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


HOSTILE: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: rng.choice(EDGES),
    lambda rng: -rng.choice(EDGES),
    lambda rng: 10**400,
    lambda rng: float("nan"),
    lambda rng: float("inf"),
    lambda rng: rng.choice((None, True, False, "", "x", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "9" * 5000)),
    lambda rng: rng.choice(([], {}, [[]], [1] * 1000, {"a": {"b": 1}}, [0, 0], [2**62, 4], [-1])),
    lambda rng: rng.choice(("F32", "F64", "I64", "BOOL", "F4", "F8_E5M2", "BF16", "u8")),
)


def _clip(path: Path, codec: str, pix_fmt: str) -> bytes:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *SIZE, pix_fmt, 3
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(_pixels(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def _pixels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)


def _picture(path: Path, file_format: str, mode: str, options: dict[str, Any]) -> bytes:
    if mode == "I;16":
        Image.fromarray(_pixels(0)[..., 0].astype(np.uint16) * 200).save(path, file_format)
        return path.read_bytes()
    frames = [Image.fromarray(_pixels(i)).convert(mode) for i in range(4)]
    more = {"append_images": frames[1:], "duration": 100} if options.get("save_all") else {}
    frames[0].save(path, file_format, **options, **more)
    return path.read_bytes()


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = WanTransformer(MODEL)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}


def _gguf(path: Path, weights: dict[str, torch.Tensor]) -> bytes:
    tensors = {name: plain(tensor, "F16") for name, tensor in weights.items()}
    shape = weights["blocks.0.ffn.0.weight"].shape
    tensors["blocks.0.ffn.0.weight"] = ("Q8_0", tuple(shape), make_blocks("Q8_0", shape.numel() // 32, factor=0.1))
    patch = tensors["patch_embedding.weight"]
    tensors["patch_embedding.weight"] = (patch[0], (patch[1][0], patch[1][1] * 4), patch[2])
    values = {**WAN, **CONFIG, "comfy.gguf.orig_shape.patch_embedding.weight": tuple(patch[1])}
    return write_gguf(path, tensors, values).read_bytes()


def _lora(prefix: str, *, alpha: bool) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in LORA_PATHS:
        tensors[f"{prefix}{path}.lora_A.weight"] = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
        tensors[f"{prefix}{path}.lora_B.weight"] = torch.randn(32, 4, generator=torch.Generator().manual_seed(2))
        if alpha:
            tensors[f"{prefix}{path}.alpha"] = torch.tensor(4.0)
    return tensors


def _place(rng: random.Random, raw: bytearray) -> int:
    """Mostly near the beginning, where the headers are."""
    end = max(1, len(raw))
    return rng.randrange(min(end, rng.choice((16, 64, 512, end, end))))


def _flip(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    if raw:
        raw[_place(rng, raw)] ^= 1 << rng.randrange(8)


def _edge(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    size, at = rng.choice((1, 2, 4, 8)), _place(rng, raw)
    number = (rng.choice(EDGES) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    raw[at : at + size] = number


def _cut(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    del raw[_place(rng, raw) if rng.random() < 0.3 else rng.randrange(len(raw) + 1) :]


def _lose(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    at = _place(rng, raw)
    del raw[at : at + rng.choice((1, 4, 16, 200))]


def _double(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    at, size = _place(rng, raw), rng.choice((1, 4, 16, 200, 2000))
    raw[at:at] = raw[at : at + size] * rng.choice((1, 2, 10))


def _fill(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    at, size = _place(rng, raw), rng.choice((1, 8, 64, 500))
    value = rng.choice((b"\0", b"\xff", b" ", rng.randbytes(1)))
    raw[at : at + size] = value * min(size, max(0, len(raw) - at))


def _noise(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    at, size = _place(rng, raw), rng.choice((1, 4, 32, 300))
    raw[at : at + size] = rng.randbytes(size)


def _graft(rng: random.Random, raw: bytearray, others: list[bytes]) -> None:
    other = rng.choice(others)
    start, at = rng.randrange(len(other)), _place(rng, raw)
    raw[at : at + rng.choice((0, 8, 400))] = other[start : start + rng.choice((8, 100, 3000))]


_FAULTS = (_flip, _flip, _edge, _edge, _edge, _cut, _lose, _double, _fill, _noise, _graft)
