"""On a GPU: a bad update leaves all as it was, the host waits for none that need not, and memory is what is planned.

Those in pages are left out: managed memory is the driver's, and no allocator of ours counts it.
"""

import copy

import pytest
import torch
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.average import Ema
from wan_train.core.train.optimizers import build_optimizer, update_if
from wan_train.tests.core.optimizers.helpers import need

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = [name for name in OPTIMIZERS.names if not name.startswith("paged") and name != "custom"]
FREE = [
    name for name in NAMES if not OPTIMIZERS.get(name).waits and "bitsandbytes" not in OPTIMIZERS.get(name).packages
]


def make(name, count=8, size=512):
    need(*OPTIMIZERS.get(name).packages)
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("PyTorch 2.9 or newer")
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, size, device="cuda")) for _ in range(count)]
    return parameters, build_optimizer(parameters, OptimizerOptions(name=name, learning_rate=1e-2))


def set_gradients(parameters):
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


def is_same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_update_leaves_all_as_it_was(name):
    parameters, optimizer = make(name)
    for _ in range(2):
        set_gradients(parameters)
        update_if(torch.tensor(True, device="cuda"), optimizer)
    weights = [parameter.detach().clone() for parameter in parameters]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    set_gradients(parameters)
    parameters[0].grad[0, 0] = float("nan")
    update_if(torch.tensor(False, device="cuda"), optimizer)()
    assert all(map(torch.equal, parameters, weights))
    assert is_same(optimizer.state_dict()["state"], state)


@pytest.mark.parametrize("name", FREE)
def test_the_host_does_not_wait(name):
    parameters, optimizer = make(name)
    ema = Ema(torch.nn.Module(), parameters, EmaOptions(use=True))
    good = torch.tensor(True, device="cuda")
    set_gradients(parameters)
    update_if(good, optimizer)  # the first makes the state, some of it on the CPU
    for _ in range(3):
        set_gradients(parameters)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            update_if(good, optimizer)
            ema(good)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_state_and_the_update_take_what_is_planned(name):
    parameters, optimizer = make(name, count=64)
    method, number = OPTIMIZERS.get(name), sum(parameter.numel() for parameter in parameters)
    good = torch.tensor(True, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    set_gradients(parameters)
    update_if(good, optimizer)
    for parameter in parameters:
        parameter.grad = None
    torch.cuda.synchronize()
    edges = sum(sum(parameter.shape) for parameter in parameters)
    state = method.bytes_of(OptimizerOptions(name=name)) * number + method.edge_bytes * edges
    assert torch.cuda.memory_allocated() - before <= 1.03 * state + 2**20
    set_gradients(parameters)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    update_if(good, optimizer)
    torch.cuda.synchronize()
    copies = 0 if method.skips_bad_steps or method.waits else 4 * number + state
    room = method.update_bytes * number + copies
    assert torch.cuda.max_memory_allocated() - held <= 1.03 * room + 2**22
