"""Miniature Wan models in the true file formats: two experts, the VAE and umT5, about 2 MB in all.

The weights are made, not trained. They are drawn from a seed and laid out so that the models behave: the transformer
starts as the best linear guess of the velocity, the VAE keeps the colours of every 8x8 block, umT5 is random. That is
enough to train a LoRA in a minute on a CPU and to see it work; it is not enough for pretty pictures.

Run as a program: python -m tools.miniature MODELS_FOLDER
"""

import io
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .mini_vae import wan_vae
from .weights import Tensors, Weights

FREQ_DIM = 256  # width of the sinusoidal time features, all Wan models
IMAGE_DIM = 1280  # width of the CLIP vision features that Wan 2.1 I2V takes


@dataclass(frozen=True, kw_only=True)
class DiTSize:
    """Sizes of a Wan transformer. Files with text_dim 4096 and heads of 128 need no header; others say so in theirs."""

    dim: int = 96
    ffn_dim: int = 192
    num_heads: int = 2
    num_layers: int = 3
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 64
    image_embedding: bool = False  # the CLIP vision branch of Wan 2.1 I2V
    image_positions: int = 0  # learned positions of the CLIP tokens, in FLF2V alone


T2V = DiTSize()
I2V_21 = DiTSize(in_dim=36, image_embedding=True)
FLF2V_21 = DiTSize(in_dim=36, image_embedding=True, image_positions=514)
I2V_22 = DiTSize(in_dim=36)
TI2V_5B = DiTSize(in_dim=48, out_dim=48)


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """Sizes of a umT5 encoder."""

    d_model: int = 64
    d_ff: int = 128
    d_kv: int = 16
    num_heads: int = 4
    num_layers: int = 2


def wan_dit(size: DiTSize = T2V, seed: int = 0) -> Tensors:
    """State dict of a transformer under the official key names, float32."""
    draw = Weights(seed)
    dim = size.dim
    _patches(draw, size)
    draw.linear("text_embedding.0", dim, size.text_dim)
    draw.linear("text_embedding.2", dim, dim)
    draw.linear("time_embedding.0", dim, FREQ_DIM, gain=4.0)
    draw.linear("time_embedding.2", dim, dim)
    draw.linear("time_projection.1", dim * 6, dim, gain=0.3)
    for index in range(size.num_layers):
        _block(draw, f"blocks.{index}", size)
    if size.image_embedding:
        _image_embedding(draw, size)
    draw.tensors["head.modulation"] = torch.zeros(1, 2, dim)
    _fit_time_embedding(draw)
    return draw.tensors


def dit_metadata(size: DiTSize = T2V) -> dict[str, str]:
    """Header of the file: what cannot be read off the tensors, in the form that ComfyUI merges into its config."""
    return {"config": json.dumps({"transformer": {"num_heads": size.num_heads, "text_dim": size.text_dim}})}


def _patches(draw: Weights, size: DiTSize) -> None:
    """Patch embedding and head. Where they fit, the head undoes the embedding, up to the layer norm between them.

    The columns are orthonormal and orthogonal to (1, ..., 1), so neither the norm's mean nor the time embedding, which
    is the same number in every dimension, comes out of the head.
    """
    dim, patch_in, patch_out = size.dim, size.in_dim * 4, size.out_dim * 4
    draw.conv("patch_embedding", dim, size.in_dim, (1, 2, 2), gain=1.0)
    draw.linear("head.head", patch_out, dim)
    if patch_out >= dim:
        return
    start = torch.cat([torch.ones(dim, 1), draw.normal(dim, patch_out, std=1.0)], dim=1)
    columns = torch.linalg.qr(start)[0][:, 1:]  # [dim, patch_out]
    embedding = draw.tensors["patch_embedding.weight"]
    if patch_in > patch_out:
        embedding.mul_(0.1)  # the conditioning channels of I2V, which follow the noisy ones
    embedding[:, : size.out_dim] = columns.reshape(dim, size.out_dim, 1, 2, 2)
    # The head's rows are (patch row, patch column, channel); the embedding's columns are (channel, row, column).
    rows = columns.T.reshape(size.out_dim, 2, 2, dim).permute(1, 2, 0, 3).reshape(patch_out, dim)
    draw.tensors["head.head.weight"] = (rows * math.sqrt(patch_out / dim)).contiguous()


def _block(draw: Weights, name: str, size: DiTSize) -> None:
    dim = size.dim
    modulation = torch.zeros(1, 6, dim)
    modulation[:, 2] = modulation[:, 5] = 0.5  # the gates: small, so that the random blocks stay a murmur
    draw.tensors[f"{name}.modulation"] = modulation + draw.normal(1, 6, dim, std=0.02)
    for attention in ("self_attn", "cross_attn"):
        for projection in "qkv":
            draw.linear(f"{name}.{attention}.{projection}", dim, dim)
        draw.linear(f"{name}.{attention}.o", dim, dim, gain=0.2)
        draw.ones(f"{name}.{attention}.norm_q.weight", dim)
        draw.ones(f"{name}.{attention}.norm_k.weight", dim)
    if size.image_embedding:
        draw.linear(f"{name}.cross_attn.k_img", dim, dim)
        draw.linear(f"{name}.cross_attn.v_img", dim, dim)
        draw.ones(f"{name}.cross_attn.norm_k_img.weight", dim)
    draw.ones(f"{name}.norm3.weight", dim)
    draw.tensors[f"{name}.norm3.bias"] = torch.zeros(dim)
    draw.linear(f"{name}.ffn.0", size.ffn_dim, dim)
    draw.linear(f"{name}.ffn.2", dim, size.ffn_dim, gain=0.2)


def _image_embedding(draw: Weights, size: DiTSize) -> None:
    draw.ones("img_emb.proj.0.weight", IMAGE_DIM)
    draw.tensors["img_emb.proj.0.bias"] = torch.zeros(IMAGE_DIM)
    draw.linear("img_emb.proj.1", IMAGE_DIM, IMAGE_DIM)
    draw.linear("img_emb.proj.3", size.dim, IMAGE_DIM)
    draw.ones("img_emb.proj.4.weight", size.dim)
    draw.tensors["img_emb.proj.4.bias"] = torch.zeros(size.dim)
    if size.image_positions:
        draw.tensors["img_emb.emb_pos"] = draw.normal(1, size.image_positions, IMAGE_DIM, std=0.5)


def _fit_time_embedding(draw: Weights) -> None:
    """Solve for the last time layer, so that the head scales by the best linear guess of the velocity.

    For latents and noise of unit variance, x = (1-s) z + s n has variance v = (1-s)^2 + s^2, and E[n - z | x] is
    (2s - 1) / v * x. The head sees x / sqrt(v) and multiplies by 1 + e, hence e = (2s - 1) / sqrt(v) - 1.
    """
    sigmas = torch.linspace(0, 1, 501, dtype=torch.float64)
    frequencies = torch.exp(-math.log(10000) * torch.arange(FREQ_DIM // 2, dtype=torch.float64) / (FREQ_DIM // 2))
    angles = 1000 * sigmas[:, None] * frequencies
    hidden = torch.cat([angles.cos(), angles.sin()], dim=1) @ draw.tensors["time_embedding.0.weight"].double().T
    features = torch.nn.functional.silu(hidden)  # [501, dim]
    target = (2 * sigmas - 1) / ((1 - sigmas) ** 2 + sigmas**2).sqrt() - 1
    normal = features.T @ features + 1e-2 * torch.eye(features.shape[1], dtype=torch.float64)
    row = torch.linalg.solve(normal, features.T @ target).float()
    draw.tensors["time_embedding.2.weight"] = row.expand_as(draw.tensors["time_embedding.2.weight"]).contiguous()


def umt5(size: TextSize | None = None, seed: int = 3) -> Tensors:
    """State dict of a umT5 encoder in ComfyUI's single-file form: weights, and the tokenizer as `spiece_model`."""
    return umt5_tensors(size or TextSize(), seed, character_tokenizer())


def umt5_tensors(
    size: TextSize,
    seed: int,
    tokenizer: bytes,
    *,
    query_gain: float = 1.0,
    branch_gain: float = 1.0,
    distance_std: float = 0.5,
) -> Tensors:
    """Random layers around a sentencepiece model.

    `query_gain` sharpens the attention, `branch_gain` scales what layers add to the embeddings, `distance_std` is the
    spread of the biases by distance.
    """
    import sentencepiece

    draw = Weights(seed)
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).vocab_size()
    inner = size.d_kv * size.num_heads
    draw.tensors["shared.weight"] = draw.normal(vocabulary, size.d_model, std=1.0)
    for index in range(size.num_layers):
        name = f"encoder.block.{index}.layer"
        draw.linear(f"{name}.0.SelfAttention.q", inner, size.d_model, gain=query_gain, bias=False)
        for projection in "kv":
            draw.linear(f"{name}.0.SelfAttention.{projection}", inner, size.d_model, bias=False)
        draw.linear(f"{name}.0.SelfAttention.o", size.d_model, inner, gain=branch_gain, bias=False)
        bias = draw.normal(32, size.num_heads, std=distance_std)  # 32 buckets of distance, as in every T5
        draw.tensors[f"{name}.0.SelfAttention.relative_attention_bias.weight"] = bias
        draw.ones(f"{name}.0.layer_norm.weight", size.d_model)
        draw.linear(f"{name}.1.DenseReluDense.wi_0", size.d_ff, size.d_model, bias=False)
        draw.linear(f"{name}.1.DenseReluDense.wi_1", size.d_ff, size.d_model, bias=False)
        draw.linear(f"{name}.1.DenseReluDense.wo", size.d_model, size.d_ff, gain=branch_gain, bias=False)
        draw.ones(f"{name}.1.layer_norm.weight", size.d_model)
    draw.ones("encoder.final_layer_norm.weight", size.d_model)
    # ComfyUI tells T5-XXL by the rows of this tensor of its last block. Empty, and never read by a smaller encoder.
    draw.tensors["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(10240, 0)
    draw.tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8).clone()
    return draw.tensors


def character_tokenizer() -> bytes:
    """A sentencepiece model of the printable ASCII characters."""
    sentences = ("".join(map(chr, range(start, start + 16))) + " a" for start in range(32, 127, 16))
    return train_tokenizer(sentences, model_type="char")


def train_tokenizer(sentences: Iterable[str], **options: Any) -> bytes:
    """A sentencepiece model of at most 256 pieces, with umT5's special ids; the same bytes each time."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=out,
        vocab_size=256,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def write_family(models_dir: Path) -> list[Path]:
    """Write the four files of the demo below `models_dir` and return their paths. Same bytes each time."""
    files: dict[str, tuple[Tensors, dict[str, str] | None]] = {
        "diffusion_models/wan_mini_high_noise.safetensors": (wan_dit(T2V, seed=10), dit_metadata(T2V)),
        "diffusion_models/wan_mini_low_noise.safetensors": (wan_dit(T2V, seed=11), dit_metadata(T2V)),
        "vae/wan_mini_vae.safetensors": (wan_vae(), None),
        "text_encoders/wan_mini_umt5.safetensors": (umt5(), None),
    }
    paths = []
    for name, (tensors, metadata) in files.items():
        path = models_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=metadata)
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_family(Path(sys.argv[1])):
        print(f"{written.stat().st_size / 1e6:6.2f} MB  {written}")
