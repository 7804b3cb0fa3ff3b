"""Inputs that somebody made to do harm: each a kind, and bytes (or a deed in the folder) by a function of chance."""
# ruff: noqa: ARG005  every maker takes chance and good files

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fuzz_inputs import EDGES, HOSTILE, mutate_json, pack_safetensors, unpack_safetensors

Bases = dict[str, bytes]
Make = Callable[[random.Random, Bases], bytes]
Deed = Callable[[random.Random, Path], None]  # puts something beside the file of the try, or in its place

DEEP = b"[" * 100_000
_NUL_ENTRY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _json_header(kind: str) -> Make:
    def make(rng: random.Random, bases: Bases) -> bytes:
        header, body = unpack_safetensors(bases[kind])
        for _ in range(rng.choice((1, 1, 2, 4))):
            header = mutate_json(rng, header)
        return pack_safetensors(header, body)

    return make


def _tensor(kind: str) -> Make:
    """One tensor's entry is exchanged, so that sizes contradict each other while the file is whole."""

    def make(rng: random.Random, bases: Bases) -> bytes:
        header, body = unpack_safetensors(bases[kind])
        name = rng.choice([name for name in header if name != "__metadata__"])
        entry = dict(header[name])
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        shapes = (
            [size // 4],
            [1, size // 4],
            [size // 4, 1, 1, 1, 1],
            [0, 2**62],
            [0],
            [],
            [1] * 60,
            [size // 4, 1, 1],
        )
        entry["shape"] = rng.choice(shapes)
        if rng.random() < 0.3:
            entry["dtype"] = rng.choice(("F16", "F64", "I8", "U8", "BOOL", "F8_E8M0", "C64"))
        if rng.random() < 0.3:
            header[name.replace("blocks.0", f"blocks.{rng.choice(EDGES)}")] = header.pop(name)
        header[name] = entry
        return pack_safetensors(header, body)

    return make


def _numbers(kind: str) -> Make:
    """The tensors' values are exchanged: NaN, infinity, zeros."""

    def make(rng: random.Random, bases: Bases) -> bytes:
        header, body = unpack_safetensors(bases[kind])
        value = rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e38))
        return pack_safetensors(header, struct.pack("<f", value) * (len(body) // 4))

    return make


def _raw_header(raw: bytes) -> Make:
    return lambda rng, bases: pack_safetensors(raw, b"")


def _length(rng: random.Random, bases: Bases) -> bytes:
    return struct.pack("<Q", rng.choice(EDGES)) + bases["model"][8:]


def _many(rng: random.Random, bases: Bases) -> bytes:
    return pack_safetensors({f"t{i}": _NUL_ENTRY for i in range(rng.choice((1000, 99_999, 300_000)))}, b"")


def _gguf(num_tensors: int, num_values: int, rest: bytes) -> Make:
    return lambda rng, bases: b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_values) + rest


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _gguf_numbers(rng: random.Random, bases: Bases) -> bytes:
    """A whole number of the table of tensors at its edge."""
    raw = bytearray(bases["gguf"])
    name = rng.choice(
        (b"blocks.0.ffn.0.weight", b"head.head.weight", b"general.architecture", b"orig_shape.patch_embedding.weight")
    )
    at = raw.index(name) + len(name) + rng.choice((-len(name) - 8, 0, 4, 12, 20, 24, 28))
    code = rng.choice("IQ")
    struct.pack_into("<" + code, raw, at, rng.choice(EDGES) % (2**32 if code == "I" else 2**64))
    return bytes(raw)


def _index(rng: random.Random, bases: Bases) -> bytes:
    names: Any = rng.choice(
        (
            "../try-part.safetensors",
            "/etc/passwd",
            "",
            "..",
            ".",
            "try.safetensors.index.json",
            "a\0b",
            "x" * 5000,
            5,
            None,
            [1],
        )
    )
    return json.dumps({"weight_map": {"a": names, "b": rng.choice(("try-part.safetensors", names))}}).encode()


def _many_shards(rng: random.Random, bases: Bases) -> bytes:
    return json.dumps({"weight_map": {f"a{i}": f"{i}.safetensors" for i in range(200_000)}}).encode()


def _json(kind: str) -> Make:
    def make(rng: random.Random, bases: Bases) -> bytes:
        return json.dumps(mutate_json(rng, json.loads(bases[kind]))).encode("utf-8", "surrogatepass")

    return make


def _metadata(kind: str, key: str, good: dict[str, Any]) -> Make:
    def make(rng: random.Random, bases: Bases) -> bytes:
        header, body = unpack_safetensors(bases[kind])
        value: Any = json.dumps(mutate_json(rng, good))
        if rng.random() < 0.2:
            value = rng.choice((DEEP.decode(), "{", "null", "5", '"x"', "[]", '{"a": 1e999}', "9" * 5000))
        header["__metadata__"] = {**header.get("__metadata__", {}), key: value}
        return pack_safetensors(header, body)

    return make


def gif(width: int, height: int, frames: int, delay: int = 1) -> bytes:
    """An animation of the size that it claims, each frame of one pixel."""
    frame = (
        b"\x21\xf9\x04\0"
        + struct.pack("<H", delay)
        + b"\0\0\x2c"
        + struct.pack("<HHHH", 0, 0, 1, 1)
        + b"\0\x02\x02\x44\x01\0"
    )
    return (
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + frame * frames + b"\x3b"
    )


def _mkv_times(rng: random.Random, bases: Bases) -> bytes:
    """The unit of time, or the time of a cluster, is huge."""
    raw = bytearray(bases["mkv"])
    for mark, size in ((b"\x2a\xd7\xb1", 3), (b"\xe7", 1)):
        at = raw.find(mark)
        if at >= 0 and rng.random() < 0.7:
            raw[at + len(mark) + 1 : at + len(mark) + 1 + size] = rng.choice((b"\xff", b"\x7f", b"\0")) * size
    return bytes(raw)


def _mp4_times(rng: random.Random, bases: Bases) -> bytes:
    """Time scale, sample durations and sizes of an mp4 at their edges."""
    raw = bytearray(bases["mp4"])
    box = rng.choice(
        (b"mdhd", b"stts", b"ctts", b"stsz", b"tkhd", b"mvhd", b"elst", b"stsd", b"stco", b"stsc", b"avcC", b"stss")
    )
    at = raw.find(box)
    if at >= 0:
        struct.pack_into(">I", raw, at + 4 + 4 * rng.randrange(1, 8), rng.choice(EDGES) % 2**32)
    return bytes(raw)


def _codec(rng: random.Random, bases: Bases) -> bytes:
    return bases["mp4"].replace(
        b"avc1", rng.choice((b"zzzz", b"\0\0\0\0", b"mp4a", b"tx3g", b"hvc1", b"rpza", b"raw "))
    )


def _playlist(rng: random.Random, bases: Bases) -> bytes:
    """Text that libav would follow to other files or addresses."""
    return rng.choice(
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
            b"ffconcat version 1.0\nfile 'good.png'\nfile '/dev/zero'\n",
            b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 4000 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n",
            b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n(x) run\n",
        )
    )


def _caption(rng: random.Random, bases: Bases) -> bytes:
    text = rng.choice(("a dog", "\u72d7 [trigger]", "", "\0", "[trigger]" * 1000, "\u202e\ufeffx", "(" * 5000))
    raw = text.encode(rng.choice(("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")))
    return rng.choice(
        (raw, raw[:-1], raw + b"\xff", raw * rng.choice((1, 1000)), rng.randbytes(50), b"\xff\xfe" * 9, bytes(2**21))
    )


def _pipe(rng: random.Random, path: Path) -> None:
    path.unlink(missing_ok=True)
    if hasattr(os, "mkfifo") and rng.random() < 0.5:
        os.mkfifo(path)
    else:
        path.mkdir()


def _link(rng: random.Random, path: Path) -> None:
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(
            rng.choice((path, path.parent, Path("/dev/zero"), path.parent / "gone", Path("/proc/self/mem")))
        )
    except OSError:  # Windows without the right to make links
        path.mkdir()


def _odd_neighbours(rng: random.Random, path: Path) -> None:
    """Files beside it with names that hurt."""
    for name in (b"caf\xe9.png", b"caf\xe9.txt", b"new\nline.png", b"x" * 250 + b".png", b"..png", b"CON.png"):
        try:
            Path(os.fsdecode(os.fsencode(path.parent) + b"/" + name)).write_bytes(b"x")
        except OSError:  # this disk takes no such name
            continue
    deep = path.parent
    for _ in range(600):
        deep = deep / "d"
    deep.mkdir(parents=True, exist_ok=True)


TARGETS: tuple[tuple[str, Make], ...] = (
    *((kind, _json_header(kind)) for kind in ("model", "fp8", "lora", "peft", "recovery", "weights") for _ in range(2)),
    *((kind, _tensor(kind)) for kind in ("model", "fp8", "lora", "recovery", "weights") for _ in range(2)),
    *((kind, _numbers(kind)) for kind in ("model", "lora", "recovery")),
    *((kind, _raw_header(raw)) for kind in ("model", "lora") for raw in (DEEP, b'{"a":' * 50_000, b"[]", b"{}", b"null")),
    ("lora", _raw_header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,0]}}')),
    ("model", _raw_header(b'{"a":' + json.dumps(_NUL_ENTRY).encode() + b',"a":' + json.dumps(_NUL_ENTRY).encode() + b"}")),
    ("model", _raw_header(b'{"a":{"dtype":"F32","shape":[' + b"9223372036854775807," * 200_000 + b'1],"data_offsets":[0,0]}}')),
    ("model", _length),
    ("lora", _length),
    ("model", _many),
    ("lora", _many),
    *(("gguf", _gguf_numbers) for _ in range(4)),
    ("gguf", _gguf(2**64 - 1, 0, b"")),
    ("gguf", _gguf(0, 2**63, b"")),
    ("gguf", _gguf(0, 0, b"")),
    ("gguf", _gguf(1, 0, _text(b"a") + struct.pack("<I", 10**6) + struct.pack("<Q", 2**63 - 1) * 10**6 + bytes(12))),
    ("gguf", _gguf(1, 0, _text(b"a") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0))),
    ("gguf", _gguf(1, 0, _text(b"a") + struct.pack("<IQIQ", 1, 0, 0, 2**63))),
    ("gguf", _gguf(0, 1, _text(b"general.alignment") + struct.pack("<IQ", 10, 2**63))),
    ("gguf", _gguf(0, 1, _text(b"a") + struct.pack("<IIQ", 9, 8, 2**62))),
    ("gguf", _gguf(0, 1, _text(b"a") + struct.pack("<IIQ", 9, 8, 3_000_000) + bytes(24_000_000))),
    ("gguf", _gguf(0, 1, _text(b"a") + struct.pack("<IIQ", 9, 9, 1))),
    ("gguf", _gguf(0, 1, struct.pack("<Q", 2**64 - 1))),
    *(("index", _index) for _ in range(4)),
    ("index", _many_shards),
    *((kind, lambda rng, bases: DEEP) for kind in ("index", "config", "caption")),
    *((kind, _json(kind)) for kind in ("index", "config", "config", "config")),
    *(("model", _metadata("model", "config", {"transformer": {"num_heads": 2, "eps": 1e-6}})) for _ in range(3)),
    ("fp8", _metadata("fp8", "_quantization_metadata", {"layers": {"blocks.0.ffn.0": {"format": "float8_e4m3fn"}}})),
    *(("peft", _metadata("peft", "lora_adapter_metadata", {"lora_alpha": 8, "alpha_pattern": {"q": 2}})) for _ in range(2)),
    ("lora", _metadata("lora", "modelspec.timestep_range", {"a": 1})),
    ("gif", lambda rng, bases: gif(9000, 9000, 20_000)),
    ("gif", lambda rng, bases: gif(9000, 9000, 400)),
    ("gif", lambda rng, bases: gif(rng.choice((1, 15, 40)), 40, rng.choice((1, 2, 500)), rng.choice((0, 1, 65535)))),
    ("gif", lambda rng, bases: gif(65535, 65535, 1)),
    ("gif", lambda rng, bases: gif(0, 0, 2)),
    *(("mkv", _mkv_times) for _ in range(2)),
    *(("mp4", _mp4_times) for _ in range(4)),
    *(("mp4", _codec) for _ in range(2)),
    *((kind, _playlist) for kind in ("mp4", "mkv", "png", "jpg")),
    *(("caption", _caption) for _ in range(4)),
)  # fmt: skip
DEEDS: tuple[tuple[str, Deed], ...] = (
    *((kind, _pipe) for kind in ("mp4", "png", "caption", "model", "gguf", "lora", "index", "config", "recovery")),
    *((kind, _link) for kind in ("mp4", "png", "caption", "model", "gguf", "lora", "index", "config", "recovery")),
    ("png", _odd_neighbours),
)


def nonsense(rng: random.Random) -> bytes:
    """No file of any kind."""
    return rng.choice(
        (b"", b"\0", rng.randbytes(rng.choice((1, 8, 100, 5000))), json.dumps(str(rng.choice(HOSTILE)(rng))).encode())
    )
