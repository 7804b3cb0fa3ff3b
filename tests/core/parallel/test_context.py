"""Context parallel against one process: the same velocity and the same gradients, whatever the variant and the sizes."""

import numpy as np
import pytest
import torch
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.parallel.context import TokenShare
from wan_train.core.parallel.world import World
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.wan.conftest import build_model, make_inputs, make_weights
from wan_train.tests.ranks import RankError

_SIZES = {"dim": 48, "ffn_dim": 96, "num_heads": 4, "num_layers": 2, "text_dim": 64}
CONFIGS = {
    "t2v": WanConfig(**_SIZES),
    "i2v": WanConfig(variant="i2v", in_dim=36, **_SIZES),
    "i2v_clip": WanConfig(variant="i2v", in_dim=36, image_dim=1280, **_SIZES),
    "flf2v": WanConfig(variant="flf2v", in_dim=36, image_dim=1280, image_positions=514, **_SIZES),
    "ti2v": WanConfig(variant="ti2v", in_dim=48, out_dim=48, **_SIZES),
}
GRID = {
    "frames": 3,
    "height": 6,
    "width": 10,
    "tokens": 12,
}  # 15 tokens a frame: neither 2 nor 4 ranks have equal parts


def velocity_and_gradients(world, variant, sizes, dtype):
    """Of a model with random factors; each rank gives the velocity it has, and its own gradients."""
    config = CONFIGS[variant]
    model = build_model(config, make_weights(config)).to(dtype)
    parameters = add_adapter(model, AdapterOptions(rank=3), seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, parameter in parameters:
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if world.context > 1:
        model.tokens = TokenShare(world, config.num_heads)
    inputs = make_inputs(config, **sizes)
    images = {name: value.to(dtype) for name, value in inputs.images.items()}
    velocity = model(inputs.latents.to(dtype), inputs.timesteps, inputs.context.to(dtype), **images)
    (velocity.double() * inputs.probe).mean().backward()
    gradients = {name: parameter.grad.double().numpy() for name, parameter in parameters}
    return velocity.detach().double().numpy(), gradients  # tensors would be sent through a server of their own


def summed(found, context):
    """Gradients summed over the first group."""
    return {name: sum(grads[name] for _, grads in found[:context]) for name in found[0][1]}


def relative(found, expected):
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def flat(gradients):
    return np.concatenate([gradient.ravel() for gradient in gradients.values()])


def compare(ranks, variant, *, size, context, sizes=None, dtype=torch.float32, velocity=1e-5, gradient=1e-6):
    sizes = sizes or GRID
    expected, grads = velocity_and_gradients(World(), variant, sizes, dtype)
    found = ranks(size, context=context)(velocity_and_gradients, variant, sizes, dtype)
    assert all((each == found[0][0]).all() for each, _ in found)  # every rank computes the same loss
    assert relative(found[0][0], expected) < velocity
    sums = summed(found, context)
    assert relative(flat(sums), flat(grads)) < gradient
    # A factor whose gradient is a sum over hundreds of like tokens is rounded more in one process, too.
    assert all(relative(sums[name], grads[name]) < 3 * gradient for name in grads)


@pytest.mark.parametrize("variant", list(CONFIGS))
def test_two_ranks_are_one(ranks, variant):
    compare(ranks, variant, size=2, context=2)


@pytest.mark.parametrize("variant", ["t2v", "ti2v"])
def test_four_ranks_are_one(ranks, variant):
    compare(ranks, variant, size=4, context=4)


def test_two_groups_of_two(ranks):
    """Both train the same sample here, each as one process does."""
    compare(ranks, "i2v_clip", size=4, context=2)


@pytest.mark.parametrize(
    "sizes", [{"frames": 1, "height": 4, "width": 6, "tokens": 5}, {"frames": 5, "height": 4, "width": 4, "tokens": 9}]
)
def test_other_sizes(ranks, sizes):
    compare(ranks, "t2v", size=4, context=4, sizes=sizes)


def test_in_bf16(ranks):
    """As far as its rounding goes."""
    compare(ranks, "t2v", size=2, context=2, dtype=torch.bfloat16, velocity=2e-2, gradient=3e-2)


def test_a_gradient_is_the_sum_and_not_a_ranks_own(ranks):
    """What the other tests compare would be wrong for one rank alone, so that a missing exchange would show."""
    _, grads = velocity_and_gradients(World(), "t2v", GRID, torch.float32)
    (_, first), _ = ranks(2, context=2)(velocity_and_gradients, "t2v", GRID, torch.float32)
    assert all(relative(first[name], grads[name]) > 1e-2 for name in grads)


def alone_in_a_group(world):
    """The first rank computes a whole sample while the other does nothing, then both share one."""
    config = CONFIGS["t2v"]
    model, inputs = build_model(config, make_weights(config)), make_inputs(config, **GRID)
    with torch.no_grad():
        expected = model(inputs.latents, inputs.timesteps, inputs.context)
    model.tokens = share = TokenShare(world, config.num_heads)
    with torch.no_grad():
        if world.is_first:
            with share.paused():
                assert torch.equal(model(inputs.latents, inputs.timesteps, inputs.context), expected)
        found = model(inputs.latents, inputs.timesteps, inputs.context)
    return relative(found.numpy(), expected.numpy())


def test_a_rank_may_run_whole_samples_alone(ranks):
    assert max(ranks(2, context=2)(alone_in_a_group)) < 1e-5


def too_small(world):
    config = CONFIGS["t2v"]
    model, inputs = build_model(config, make_weights(config)), make_inputs(config, frames=2, height=2, width=2)
    model.tokens = TokenShare(world, config.num_heads)
    model(inputs.latents, inputs.timesteps, inputs.context)


def test_a_frame_with_fewer_tokens_than_ranks_is_refused(ranks):
    with pytest.raises(RankError, match="2 GPUs can't share a clip with 1 token a frame"):
        ranks(2, context=2)(too_small)
