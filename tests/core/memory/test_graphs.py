"""Recorded steps: when they are recorded, whose gradients they give, and what they do when recording fails.

Without a GPU the recorder repeats what it was given; what a recorded step computes is tested in `test_graphs_cuda.py`.
"""

import pytest
import torch
from torch import nn
from wan_train.core.memory.graphs import WARM_UP, Graphs


class Recorder:
    def __init__(self):
        self.acts = 0

    def __call__(self, act):
        self.acts += 1
        return torch.enable_grad()(act)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 8)
        self.outer = nn.Linear(8, 4)
        self.calls = []

    def forward(self, x, *, scale):
        self.calls.append(x)
        return self.outer(self.inner(x).tanh()) * scale


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def clear(model):
    for parameter in model.parameters():
        parameter.grad = None


def step(run, x, scale):
    loss = run(x, scale=scale).square().mean()
    loss.backward()
    return loss.item()


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def told():
    return []


@pytest.fixture
def graphs(model, told):
    return Graphs(model.forward, list(model.parameters()), tell=told.append, record=Recorder())


def inputs(number, rows=2):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(rows, 4, generator=generator), torch.rand(1, generator=generator)


def test_every_step_gives_the_same_as_without(model, graphs, told):
    for number in range(6):
        clear(model)
        loss = step(model.forward, *inputs(number))
        expected = gradients(model)
        clear(model)
        assert step(graphs, *inputs(number)) == loss
        assert all(map(torch.equal, gradients(model), expected))
    assert graphs._record.acts == 2  # a forward and a backward, once
    assert told == []


def test_gradients_add_up_over_batches_of_any_size(model, graphs):
    batches = [inputs(number, rows=2 + number % 2) for number in range(8)]
    for first in range(0, 8, 4):
        clear(model)
        for batch in batches[first : first + 4]:
            step(model.forward, *batch)
        expected = gradients(model)
        clear(model)
        for batch in batches[first : first + 4]:
            step(graphs, *batch)
        assert all(map(torch.allclose, gradients(model), expected))
    assert graphs._record.acts == 4


def test_a_gradient_of_before_is_kept_when_the_first_graph_adds_to_it(model, graphs):
    for number in range(WARM_UP):
        step(graphs, *inputs(number))
    before = gradients(model)
    step(graphs, *inputs(9))
    found = gradients(model)
    clear(model)
    step(model.forward, *inputs(9))
    assert all(torch.allclose(f, b + g) for f, b, g in zip(found, before, gradients(model), strict=True))


def test_without_gradients_nothing_is_recorded(model, graphs):
    with torch.no_grad():
        for number in range(5):
            x, scale = inputs(number)
            assert torch.equal(graphs(x, scale=scale), model(x, scale=scale))
    assert graphs._record.acts == 0


def test_too_little_memory_beside_the_graphs(model, graphs):
    """For validation: they are dropped, and recorded anew in the next step."""
    for number in range(4):
        step(graphs, *inputs(number))
    forward, held = model.forward, graphs._graphs

    def narrow(*args, **named):
        if held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **named)

    graphs._forward = narrow
    with torch.no_grad():
        graphs(inputs(0)[0], scale=inputs(0)[1])
    assert graphs._graphs == {}
    graphs._forward = forward
    step(graphs, *inputs(1))
    assert graphs._record.acts == 4


def test_out_of_memory_without_graphs_is_raised(model, told):
    def fail(*args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphs = Graphs(fail, list(model.parameters()), tell=told.append, record=Recorder())
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        graphs(inputs(0)[0])


def test_where_recording_fails_the_steps_go_on_without(model, told):
    def fail(act):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(model.forward, list(model.parameters()), tell=told.append, record=fail)
    for number in range(5):
        clear(model)
        loss = step(graphs, *inputs(number))
        found = gradients(model)
        clear(model)
        assert step(model.forward, *inputs(number)) == loss
        assert all(map(torch.equal, gradients(model), found))
    assert told == [
        "CUDA graphs cannot be recorded here (operation not permitted when stream is capturing). The run goes on without: "
        "the result is the same, steps of small clips take longer."
    ]


def test_a_backward_belongs_to_the_latest_forward(model, graphs):
    for number in range(4):
        step(graphs, *inputs(number))
    x, scale = inputs(0)
    late = graphs(x, scale=scale).sum()
    graphs(x, scale=scale)
    with pytest.raises(AssertionError, match="latest forward"):
        late.backward()
