"""Recorded steps: when they are recorded, whose gradients they give, and what they do when recording fails.

Without a GPU the recorder repeats what it was given; what a recorded step computes is tested in `test_graphs_cuda.py`.
"""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from wan_train.core.memory.graphs import PATIENCE, WARM_UP, Graphs


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


def test_the_largest_size_is_recorded_first_when_all_that_came_are_known(model, graphs):
    """Its freed memory holds that of every smaller one; of a smaller one it would not hold the larger."""
    recorded = []
    graphs._record = lambda act: recorded.append(len(model.calls)) or torch.enable_grad()(act)
    rows_of_step = [2, 2, 3, 2, 5, 3, 5, 2]
    for number, rows in enumerate(rows_of_step[:-1]):
        step(graphs, *inputs(number, rows))
        assert recorded == []  # a size came that is not known yet
    model.calls.clear()
    step(graphs, *inputs(9, 2))
    assert [len(x) for x in model.calls] == [5, 3, 2, 2]  # each while it is recorded, then the step's own
    assert len(recorded) == 2 * 3
    step(graphs, *inputs(9, 5))
    assert len(recorded) == 2 * 3


def test_a_new_size_runs_without_graphs_beside_it_and_all_are_recorded_anew(model, graphs):
    for number in range(3):
        step(graphs, *inputs(number))
    assert len(graphs._graphs) == 1
    held = []
    forward = graphs._forward
    graphs._forward = lambda x, *, scale: held.append(len(graphs._graphs)) or forward(x, scale=scale)
    for number in range(2):
        step(graphs, *inputs(number, rows=7))
    step(graphs, *inputs(4))
    assert held[:2] == [0, 0]
    assert [len(x) for x in model.calls[-3:]] == [7, 2, 2]
    assert len(graphs._graphs) == 2


def test_a_rare_size_does_not_hold_up_the_others(model, graphs):
    for number in range(WARM_UP):
        step(graphs, *inputs(number))
    step(graphs, *inputs(0, rows=7))
    for number in range(PATIENCE):
        step(graphs, *inputs(number))
    assert graphs._graphs == {}
    step(graphs, *inputs(0))
    assert len(graphs._graphs) == 1
    step(graphs, *inputs(0, rows=7))
    step(graphs, *inputs(0))
    assert len(graphs._graphs) == 2


def test_nothing_of_a_recorded_size_lives_on_but_its_output(told):
    """Or the next size could not be recorded into the same memory."""

    made = []

    class Watched(Model):
        def forward(self, x, *, scale):
            hidden = self.inner(x).tanh()
            made.append(StorageWeakRef(hidden.untyped_storage()))
            return self.outer(hidden) * scale

    class WatchingRecorder:
        """Does the act when it is recorded, as CUDA's does, and asks what is left of the sizes before."""

        def __init__(self):
            self.alive = []

        def __call__(self, act):
            is_forward = act.__name__ == "run_forward"
            if is_forward:
                self.alive.append(sum(not each.expired() for each in made))
            torch.enable_grad()(act)()
            return torch.enable_grad()(act) if is_forward else lambda: None

    model, record = Watched(), WatchingRecorder()
    graphs = Graphs(model.forward, list(model.parameters()), tell=told.append, record=record)
    for number, rows in enumerate((2, 2, 3, 3, 5, 5, 2)):
        step(graphs, *inputs(number, rows))
    assert record.alive == [0, 0, 0]
    assert told == []


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


def recorded(model, graphs):
    """Graphs of the inputs' size, and clear gradients."""
    for number in range(WARM_UP + 1):
        step(graphs, *inputs(number))
    assert len(graphs._graphs) == 1
    clear(model)
    return graphs


def expected_of(model, batches):
    """Gradients of the sum of the losses of these batches, without graphs."""
    clear(model)
    sum(model.forward(x, scale=scale).square().mean() for x, scale in batches).backward()
    found = gradients(model)
    clear(model)
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_backwards_may_be_delayed_and_come_in_any_order(model, graphs, order):
    """Only the first of the forwards that wait is a recorded one: the others would overwrite what it keeps."""
    recorded(model, graphs)
    batches = [inputs(number) for number in range(3)]
    expected = expected_of(model, batches)
    outputs = [graphs(x, scale=scale) for x, scale in batches]
    kept = [output.detach().clone() for output in outputs]
    for number in order:
        outputs[number].square().mean().backward()
    assert all(map(torch.allclose, gradients(model), expected))
    assert all(map(torch.equal, outputs, kept))
    replays = []
    graph = next(iter(graphs._graphs.values()))
    replay = graph._replay_forward
    graph._replay_forward = lambda: replays.append(1) or replay()
    step(graphs, *inputs(0))
    assert replays == [1]  # nothing waits any more


def test_one_backward_for_several_forwards(model, graphs):
    recorded(model, graphs)
    batches = [inputs(number) for number in range(3)]
    expected = expected_of(model, batches)
    sum(graphs(x, scale=scale).square().mean() for x, scale in batches).backward()
    assert all(map(torch.allclose, gradients(model), expected))


def test_forwards_without_a_gradient_between_a_forward_and_its_backward(model, graphs):
    recorded(model, graphs)
    expected = expected_of(model, [inputs(0)])
    x, scale = inputs(0)
    output = graphs(x, scale=scale)
    with torch.no_grad():
        between = graphs(*inputs(1)[:1], scale=inputs(1)[1])
        assert torch.equal(between, model(inputs(1)[0], scale=inputs(1)[1]))
    output.square().mean().backward()
    assert all(map(torch.equal, gradients(model), expected))


def test_a_new_size_while_one_waits_is_not_recorded_and_takes_no_graph_away(model, graphs):
    recorded(model, graphs)
    batches = [inputs(0), *(inputs(number, rows=5) for number in range(1, 5))]
    expected = expected_of(model, batches)
    x, scale = inputs(0)
    waiting = graphs(x, scale=scale).square().mean()
    for batch in batches[1:]:
        step(graphs, *batch)
    assert len(graphs._graphs) == 1
    waiting.backward()
    assert all(map(torch.allclose, gradients(model), expected))


def test_a_forward_whose_backward_never_comes_is_not_waited_for(model, graphs):
    recorded(model, graphs)
    x, scale = inputs(0)
    output = graphs(x, scale=scale)
    assert graphs._is_waiting()
    del output
    assert not graphs._is_waiting()


def test_an_output_outlasts_the_next_forward(model, graphs):
    recorded(model, graphs)
    outputs = []
    for number in range(2):
        x, scale = inputs(number)
        output = graphs(x, scale=scale)
        output.sum().backward()
        outputs.append(output.detach())
    assert torch.equal(outputs[0], model(inputs(0)[0], scale=inputs(0)[1]))


def test_a_backward_cannot_be_run_again(model, graphs):
    recorded(model, graphs)
    x, scale = inputs(0)
    loss = graphs(x, scale=scale).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="run once"):
        loss.backward()
