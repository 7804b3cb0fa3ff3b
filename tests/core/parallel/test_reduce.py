"""Gradients summed over ranks: in buckets of one order, whoever's backward is complete first."""

import pytest
import torch
from wan_train.core.parallel.reduce import GradientSum, _cut, copy_from_first, reduction_bytes, sends_early


def model(seed):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(6, 6, bias=False) for _ in range(5)]
    return torch.nn.Sequential(*layers)


def inputs(rank, number):
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(10 * rank + number))


def backwards(net, rank, count):
    for number in range(count):
        net(inputs(rank, number)).square().mean().backward()


def summed(world, counts, *, told, bucket_bytes, early=True):
    """Gradients, and how many buckets were on their way before the last backward had ended."""
    net = model(0)
    parameters = list(net.parameters())
    total = GradientSum(parameters, world, bucket_bytes=bucket_bytes, early=early)
    count = counts[world.rank]
    total.begin(count if told else 0)
    backwards(net, world.rank, count)
    early = total._next
    total.finish()
    return [p.grad.tolist() for p in parameters], early


def after_a_break(world):
    """The second rank breaks off within its backward; then both do all of it again."""
    net = model(0)
    parameters = list(net.parameters())
    total = GradientSum(parameters, world, bucket_bytes=200)
    for attempt in range(2):
        for parameter in parameters:
            parameter.grad = None
        total.begin(1)
        if world.rank == 1 and attempt == 0:
            handle = net[2].register_full_backward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                backwards(net, world.rank, 1)
            handle.remove()
            total.finish_without()
        else:
            backwards(net, world.rank, 1)
            total.finish()
    return [p.grad.tolist() for p in parameters]


def replayed(world):
    """As CUDA graphs do: the gradient in a buffer of their own, and no hook called."""
    net = model(0)
    parameters = list(net.parameters())
    total = GradientSum(parameters, world, bucket_bytes=200)
    total.begin(1)
    found = torch.autograd.grad(net(inputs(world.rank, 0)).square().mean(), parameters)
    for parameter, grad in zip(parameters, found, strict=True):
        parameter.grad = grad
    total.finish()
    return [p.grad.tolist() for p in parameters]


def copied(world):
    tensors = [torch.full((2,), float(world.rank + 1)), torch.full((3, 2), 10.0 + world.rank)]
    copy_from_first(tensors, world)
    return [tensor.tolist() for tensor in tensors]


def reference(counts):
    net = model(0)
    for rank, count in enumerate(counts):
        backwards(net, rank, count)
    return [p.grad for p in net.parameters()]


def assert_near(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(torch.tensor(a), b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("bucket_bytes", [1, 200, 1 << 20])
def test_sums_are_those_of_one_process(ranks, told, bucket_bytes):
    counts = (1, 3)
    first, second = ranks(2)(summed_by, counts, told, bucket_bytes)
    assert first[0] == second[0]
    assert_near(first[0], reference(counts))
    buckets = len(_cut(list(model(0).parameters()), bucket_bytes // 4))
    assert first[1] == second[1] == (buckets if told else 0)  # all are sent as soon as the backward has them


def summed_by(world, counts, told, bucket_bytes):
    return summed(world, counts, told=told, bucket_bytes=bucket_bytes)


def summed_late(world, counts):
    return summed(world, counts, told=True, bucket_bytes=200, early=False)


def test_where_links_are_fast_nothing_is_sent_before_the_backward_ends(ranks):
    first, second = ranks(2)(summed_late, (1, 3))
    assert first == second
    assert first[1] == 0
    assert_near(first[0], reference((1, 3)))


def test_what_is_sent_when_follows_from_the_link():
    """77 million numbers, as a LoRA of rank 16 has them for the 14B model: 0.3 GB."""
    assert sends_early(77_000_000, 2, 12e9)  # PCIe
    assert not sends_early(77_000_000, 2, 200e9)  # NVLink
    assert sends_early(77_000_000, 2, 0.0)


def unused(world):
    net = model(0)
    parameters = [*net.parameters(), torch.nn.Parameter(torch.ones(3))]
    total = GradientSum(parameters, world, bucket_bytes=200, early=False)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = None
        total.begin(1)
        backwards(net, world.rank, 1)
        total.finish()
    return [p.grad.tolist() for p in parameters]


def test_a_parameter_without_a_gradient_gets_zeros(ranks):
    first, second = ranks(2)(unused)
    assert first == second
    assert first[-1] == [0.0] * 3
    assert_near(first[:-1], reference((1, 1)))


def test_a_rank_that_breaks_off_leaves_nobody_waiting(ranks):
    first, second = ranks(2)(after_a_break)
    assert first == second
    assert_near(first, reference((1, 1)))


def test_gradients_that_a_graph_has_put_elsewhere_are_collected(ranks):
    first, second = ranks(2)(replayed)
    assert first == second
    assert_near(first, reference((1, 1)))


def test_the_first_ranks_numbers_are_copied(ranks):
    assert ranks(2)(copied) == [[[1.0, 1.0], [[10.0, 10.0]] * 3]] * 2


def test_buckets_keep_the_order_and_hold_at_least_one():
    sizes = [3, 50, 2, 2, 9, 1]
    parts = _cut([torch.nn.Parameter(torch.zeros(size)) for size in sizes], 10)
    assert [[p.numel() for p in part] for part in parts] == [[3], [50], [2, 2], [9, 1]]


def test_buffers_are_the_gradients_and_one_gpu_has_none():
    assert reduction_bytes(1000, 1) == 0
    assert reduction_bytes(1000, 2) == 4000
