"""AdamW with its moments in main memory: the numbers of torch's, whatever moves when."""

import copy
from functools import partial

import pytest
import torch
from wan_train.core.memory import adamw as module
from wan_train.core.memory.adamw import AdamW, offloaded_bytes

SHAPES = ((64, 80), (80, 64), (3, 5), (7,), (200, 100))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(module, "PAGE", 6000)  # so that the shapes make four pages, one of them of two small tensors


def make_parameters(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]


def make(parameters, kind=AdamW):
    return kind(parameters, lr=1e-2, weight_decay=0.1, fused=True)


def advance(parameters, optimizer, seeds, *, without=None, found_inf=None):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for index, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.grad = None if index == without else gradient
        if found_inf is not None:
            optimizer.found_inf = found_inf
        optimizer.step()


def assert_same(ours, theirs, optimizer, plain):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    state, expected = optimizer.state_dict()["state"], plain.state_dict()["state"]
    assert state.keys() == expected.keys()
    for index, values in expected.items():
        assert state[index].keys() == values.keys()
        assert all(torch.equal(state[index][name].to(value.device), value) for name, value in values.items())


def both():
    ours, theirs = make_parameters(), make_parameters()
    return ours, theirs, make(ours), make(theirs, torch.optim.AdamW)


def test_moments_in_main_memory_give_the_same_weights():
    ours, theirs, optimizer, plain = both()
    optimizer.offload(True)
    for run in (partial(advance, ours, optimizer), partial(advance, theirs, plain)):
        run(range(5))
    assert_same(ours, theirs, optimizer, plain)


def test_they_move_at_any_time():
    ours, theirs, optimizer, plain = both()
    for number, on in enumerate((False, True, True, False, True)):
        optimizer.offload(on)
        assert optimizer.is_offloaded == on
        advance(ours, optimizer, [number])
        advance(theirs, plain, [number])
        assert_same(ours, theirs, optimizer, plain)


def test_what_has_no_gradient_stays():
    ours, theirs, optimizer, plain = both()
    for parameters, one in ((ours, optimizer), (theirs, plain)):
        advance(parameters, one, range(2))
    optimizer.offload(True)
    for parameters, one in ((ours, optimizer), (theirs, plain)):
        advance(parameters, one, range(2, 4), without=1)
    assert_same(ours, theirs, optimizer, plain)


def test_an_update_that_is_not_finite_changes_nothing():
    ours, _, optimizer, _ = both()
    optimizer.offload(True)
    advance(ours, optimizer, range(2))
    before = copy.deepcopy([*ours, optimizer.state_dict()["state"]])
    advance(ours, optimizer, [2], found_inf=torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=False))
    for index, values in before[-1].items():
        assert all(torch.equal(optimizer.state_dict()["state"][index][name], value) for name, value in values.items())


@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_a_saved_state_goes_on_wherever_it_was(first, then, tmp_path):
    ours, _, optimizer, _ = both()
    optimizer.offload(first)
    advance(ours, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    resumed = make(others)
    resumed.offload(then)
    advance(others, resumed, [9])  # what is loaded is in the place of what was there
    with torch.no_grad():
        for other, own in zip(others, ours, strict=True):
            other.copy_(own)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert resumed.is_offloaded == then
    advance(ours, optimizer, range(3, 6))
    advance(others, resumed, range(3, 6))
    assert_same(others, ours, resumed, optimizer)


def test_main_memory_that_cannot_be_had_leaves_the_state_as_it_was(monkeypatch):
    ours, theirs, optimizer, plain = both()
    for parameters, one in ((ours, optimizer), (theirs, plain)):
        advance(parameters, one, range(2))
    made = module._make_page

    def fail_at_the_last(parameters):
        if parameters[0].shape == SHAPES[-1]:
            raise MemoryError
        return made(parameters)

    monkeypatch.setattr(module, "_make_page", fail_at_the_last)
    with pytest.raises(MemoryError):
        optimizer.offload(True)
    assert not optimizer.is_offloaded
    for parameters, one in ((ours, optimizer), (theirs, plain)):
        advance(parameters, one, [2])
    assert_same(ours, theirs, optimizer, plain)


def test_a_device_without_room_leaves_the_moments_where_they_were(monkeypatch):
    ours, theirs, optimizer, plain = both()
    optimizer.offload(True)
    for parameters, one in ((ours, optimizer), (theirs, plain)):
        advance(parameters, one, range(2))
    move, moved = torch.Tensor.to, []

    def fail_at_the_third(tensor, *args, copy=False, **options):
        if copy:
            moved.append(tensor)
            if len(moved) == 3:
                raise torch.OutOfMemoryError
        return move(tensor, *args, copy=copy, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", fail_at_the_third)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.offload(False)
    assert optimizer.is_offloaded
    for parameters, one in ((ours, optimizer), (theirs, plain)):
        advance(parameters, one, [2])
    assert_same(ours, theirs, optimizer, plain)


def test_a_closure_is_evaluated_with_gradients():
    ours, theirs, optimizer, plain = both()
    optimizer.offload(True)
    for parameters, one in ((ours, optimizer), (theirs, plain)):

        def evaluate(parameters=parameters):
            loss = sum((parameter**2).sum() for parameter in parameters)
            loss.backward()
            return loss

        assert one.step(evaluate) > 0
    assert_same(ours, theirs, optimizer, plain)


def test_on_the_device_are_two_pages_and_in_main_memory_all():
    parameters = make_parameters()
    number = sum(p.numel() for p in parameters)
    optimizer = make(parameters)
    optimizer.offload(True)
    held = optimizer._offloaded
    assert sum(page.moments.numel() * 4 for page in held._pages) == offloaded_bytes(number)[1] == 8 * number
    assert [len(page.parameters) for page in held._pages] == [1, 3, 1]
    assert len(held._slots) == 2
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    pages = {page.moments.untyped_storage().data_ptr() for page in held._pages}
    assert {moment.untyped_storage().data_ptr() for moment in moments} == pages


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_numbers_are_the_same_and_two_pages_of_memory_are_taken(monkeypatch):
    monkeypatch.setattr(module, "PAGE", 2**20)
    ours, theirs = ([torch.nn.Parameter(torch.ones(1024, 512, device="cuda") * i) for i in range(24)] for _ in range(2))
    optimizer, plain = make(ours), make(theirs, torch.optim.AdamW)
    advance(ours, optimizer, range(2))
    advance(theirs, plain, range(2))
    before = torch.cuda.memory_allocated()
    optimizer.offload(True)
    freed = before - torch.cuda.memory_allocated()
    state = 8 * 24 * 1024 * 512
    assert abs(freed - (state - offloaded_bytes(24 * 1024 * 512)[0])) < 2**20
    advance(ours, optimizer, range(2, 8))
    advance(theirs, plain, range(2, 8))
    assert_same(ours, theirs, optimizer, plain)
