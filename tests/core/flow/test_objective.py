import torch
from wan_train.core.flow.objective import add_noise, flow_loss, sample_noise, velocity_target
from wan_train.core.flow.random import stream_seed


def test_noising_and_target_are_the_straight_path():
    z, n = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    sigmas = torch.tensor([0.0, 1.0])
    x = add_noise(z, n, sigmas)
    assert torch.equal(x[0], z[0])
    assert torch.equal(x[1], n[1])
    # The target is the derivative of the path by sigma, so one Euler step along it goes from x to z.
    x = add_noise(z, n, torch.tensor([0.3, 0.8]))
    steps = torch.tensor([0.3, 0.8]).view(2, 1, 1, 1, 1)
    assert torch.allclose(x - steps * velocity_target(z, n), z, atol=1e-6)


def test_loss_is_the_mean_square_of_each_sample_in_float32():
    pred = torch.zeros(2, 1, 1, 2, 2, dtype=torch.bfloat16)
    target = torch.stack([torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0)])
    loss = flow_loss(pred, target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [4.0, 9.0]


def test_noise_is_a_function_of_seed_and_draw():
    a = sample_noise((2, 3), seed=1, draw=5)
    assert torch.equal(a, sample_noise((2, 3), seed=1, draw=5))
    assert not torch.equal(a, sample_noise((2, 3), seed=1, draw=6))
    assert not torch.equal(a, sample_noise((2, 3), seed=2, draw=5))


def test_seeds_do_not_change_between_versions():
    """Resuming a run made by an earlier version needs the same draws."""
    assert stream_seed(42, "noise", 0) == 1948580212742351494
