"""The umT5 encoder of the nano family: drawn from a seed, never trained, with a vocabulary of the world's words.

Random layers are enough here. Each word of the captions is a piece of its own, so its embedding says which word it is;
soft random attention with strong distance biases adds a trace of its neighbours. What the words mean is learnt by
the transformer's cross-attention.

`python -m tools.nano text FILE` writes it.
"""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..miniature import train_tokenizer, umt5_tensors
from . import world
from .family import TEXT

SEED = 3
CAPTIONS = 20_000
END, PAD = 1, 0


def tokenizer() -> bytes:
    """A sentencepiece unigram model of the world's captions; other words fall apart into characters."""
    rng = random.Random(SEED)
    captions = [world.caption(scene, rng) for scene in islice(world.scenes(SEED), CAPTIONS)]
    words = sorted({word.strip(",:") for caption in captions for word in caption.split()})
    return train_tokenizer(
        captions,
        model_type="unigram",
        required_chars="".join(map(chr, range(33, 127))),
        user_defined_symbols=[f"▁{word}" for word in words],
    )


def make_text_encoder() -> dict[str, Tensor]:
    """State dict in ComfyUI's single-file form, float32."""
    return umt5_tensors(TEXT, SEED, tokenizer(), query_gain=0.3, branch_gain=0.5, distance_std=2.0)


class TextEncoder:
    """A umT5 of ComfyUI's single-file form, run by transformers."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import sentencepiece
        from transformers import UMT5Config, UMT5EncoderModel

        tensors = {name: tensor for name, tensor in load_file(path).items() if tensor.numel()}
        self.tokens = sentencepiece.SentencePieceProcessor(model_proto=tensors.pop("spiece_model").numpy().tobytes())
        attention = "encoder.block.0.layer.0.SelfAttention"
        heads = tensors[f"{attention}.relative_attention_bias.weight"].shape[1]
        config = UMT5Config(
            vocab_size=tensors["shared.weight"].shape[0],
            d_model=tensors["shared.weight"].shape[1],
            d_kv=tensors[f"{attention}.q.weight"].shape[0] // heads,
            d_ff=tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
            num_layers=sum(name.endswith("SelfAttention.q.weight") for name in tensors),
            num_heads=heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        self.model = UMT5EncoderModel(config)
        floats = {name: tensor.float() for name, tensor in tensors.items()}
        self.model.load_state_dict({**floats, "encoder.embed_tokens.weight": floats["shared.weight"]}, strict=False)
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [N, longest, D] float32 with zeros behind each caption's end, and the lengths [N]."""
        ids = [[*self.tokens.encode(caption), END] for caption in captions]
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.full((len(ids), int(lengths.max())), PAD)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = torch.tensor(values)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        hidden = self.model(padded.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return hidden * mask.to(self.device)[..., None], lengths


def main(arguments: list[str]) -> None:
    """Write the encoder as fp16."""
    (target,) = map(Path, arguments)
    target.parent.mkdir(parents=True, exist_ok=True)
    state = make_text_encoder()
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(halves, target)
    print(f"{target.stat().st_size / 1e6:.2f} MB  {target}")
