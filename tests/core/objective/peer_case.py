"""One small model with a LoRA, and one batch: what other trainers' own code was given for tests/fixtures."""

import torch

NUM_LAYERS, DIM, RANK, FEATURES = 6, 24, 2, 10
SIZES = {"dim": DIM, "ffn_dim": 48, "num_heads": 2, "num_layers": NUM_LAYERS, "text_dim": 16}
ROUTES = ((1, 2, 0.5), (3, -2, 0.25))  # first and last block, share that is left out
BLOCK = 2  # whose hidden states are aligned with features, of which there are more frames and more places
ROLLOUTS = ((612, 609), (480, 480))
CLASS, EMPTY = 4, 5  # seeds of the captions with a class word, and of the empty one
TARGETS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_like(state):
    """Random weights under official names, in the place of those of a state: each depends on its name alone."""
    found = {}
    for name, tensor in state.items():
        values = drawn(*tensor.shape, seed=sum(map(ord, name)) * 31 + len(name))
        is_norm = "norm" in name and name.endswith("weight")
        found[name] = 1 + 0.1 * values if is_norm else 0.3 * values / tensor.shape[-1] ** 0.5
    return found


def lora():
    """A [R, D] and B [D, R] by the official name of a layer; the strength is 1."""
    names = [f"blocks.{block}.{target}" for block in range(NUM_LAYERS) for target in TARGETS]
    return {
        name: (drawn(RANK, DIM, seed=100 + n) / 5, drawn(DIM, RANK, seed=200 + n) / 5) for n, name in enumerate(names)
    }


def batch():
    """Latents, noise [2, 16, 3, 4, 6], sigmas [2], context [2, 512, 16]."""
    noise = drawn(2, 16, 3, 4, 6, seed=2)
    return drawn(2, 16, 3, 4, 6, seed=1), noise, torch.tensor([0.6094, 0.48]), text(seed=3, count=2)


def text(*, seed, count=1):
    """Of 9 tokens, [count, 512, 16]."""
    context = drawn(count, 512, 16, seed=seed)
    context[:, 9:] = 0
    return context


def masks():
    """[2, 1, 4, 6], one for all frames, of quarters."""
    return (drawn(2, 1, 4, 6, seed=6).sigmoid() * 4).round() / 4


def pixel_masks():
    """The same in pixels, [2, 1, 32, 48]."""
    return masks().repeat_interleave(8, 2).repeat_interleave(8, 3)


def head():
    """Weight and bias of CREPA's norm, and of its projection."""
    return (
        1 + drawn(DIM, seed=11) / 10,
        drawn(DIM, seed=12) / 10,
        drawn(FEATURES, DIM, seed=13) / 5,
        drawn(FEATURES, seed=14),
    )


def features():
    """Of 9 frames with 4 x 4 places each, [2, 9, 16, FEATURES]."""
    return drawn(2, 9, 16, FEATURES, seed=15)


def told(gradients):
    """Numbers that tell gradients apart: of each its norm, and its sum with drawn weights."""
    return {
        name: [grad.norm().item(), (grad * drawn(*grad.shape, seed=sum(map(ord, name)))).sum().item()]
        for name, grad in gradients.items()
    }
