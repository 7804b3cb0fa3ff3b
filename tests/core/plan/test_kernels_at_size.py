"""Bytes of a block of 14B by kernels against what a GPU would be asked for: counted without numbers, in bf16.

A CPU's operators take copies in 16 bits, and its dropout another mask (`test_block_by_kernels`); on the meta device the
operators give their results alone, as CUDA's do.
"""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from wan_train.core.memory.frozen_linear import RowScaledLinear
from wan_train.core.memory.recompute import Kept
from wan_train.core.plan.block_by_kernels import kernel_block
from wan_train.core.plan.plan import Plan
from wan_train.core.plan.sizes import Trained, working_bytes
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.train import kernel_mode

pytest.importorskip("triton")
from wan_train.tests.core.kernels.without_numbers import (
    CONFIG,
    META,
    drop_as_a_gpu_does,
    inputs,
    make_model,
    take_launches,
    tell_noise,
    use_attention,
)

DRAWN = {"rank_dropout": 0.1, "module_dropout": 0.1}
WAYS = {
    "lora": {},
    "lora dropout": {"dropout": 0.1},
    "lora drawn": DRAWN,
    "tlora": {"kind": "tlora", "dropout": 0.1},
    "dora": {"kind": "dora"},
    "dora dropout": {"kind": "dora", "dropout": 0.1},
    "dora drawn": {"kind": "dora", **DRAWN},
    "loha": {"kind": "loha"},
    "loha dropout": {"kind": "loha", "dropout": 0.1, **DRAWN},
    "lokr": {"kind": "lokr"},
    "lokr dropout": {"kind": "lokr", "dropout": 0.1},
    "lokr drawn": {"kind": "lokr", **DRAWN},
    "lokr whole": {"kind": "lokr", "lokr_full": True, "lokr_factor": 16},
    "oft": {"kind": "oft"},
    "oft drawn": {"kind": "oft", "module_dropout": 0.1},
}


class Counted(TorchDispatchMode):
    """The bytes that are there of what was made within it, and the most that there were, as PyTorch's allocator rounds them."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self._there = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        self.sweep()
        for each in filter(torch.is_tensor, tree_leaves(found)):
            storage = each.untyped_storage()
            if storage._cdata not in self._there and storage._cdata not in before:
                self._there[storage._cdata] = StorageWeakRef(storage), -(-storage.nbytes() // 512) * 512
                self.now += self._there[storage._cdata][1]
        self.most = max(self.most, self.now)
        return found

    def sweep(self):
        for place in [place for place, (storage, _) in self._there.items() if storage.expired()]:
            self.now -= self._there.pop(place)[1]


def count(options, plan, tokens):
    """Bytes kept between forward and backward, and the most that there were of them and a backward's."""
    model = make_model(**options)
    pieces = plan.ffn_pieces
    run = kernel_mode.whole_blocks(kernel_mode.put_on(model), checkpointing=not plan.keep_linears, pieces=pieces)
    use_attention(model)
    tell_noise(model, 1)
    x, others = inputs(batch=1, tokens=tokens)
    wanted = [x, *(each for each in model.parameters() if each.requires_grad)]
    grad = torch.empty_like(x)
    torch.autograd.grad(run(model.blocks[0], x, *others), wanted, grad)  # what is made once
    gc.collect()
    with Counted() as counted:
        y = run(model.blocks[0], x, *others)
        counted.sweep()
        kept = counted.now - x.nbytes  # y, which is the next block's input
        counted.most = counted.now
        torch.autograd.grad(y, wanted, grad)
    return kept, counted.most - x.nbytes


def promise(options, plan, tokens):
    """Bytes that are promised of the same."""
    chosen = AdapterOptions(**{"rank": 16, "alpha": 16.0, **options})
    trained = Trained(rank=16, adapter=chosen.kind, dropout=bool(chosen.dropout), options=chosen)
    block = kernel_block(CONFIG, trained, tokens=tokens)
    own = block.own(plan, Kept(plan.keep_attention, plan.keep_linears)) + working_bytes(CONFIG, trained, 2)
    return block.kept, own - block.unit  # the gradient that comes in was there before


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    take_launches(monkeypatch)
    drop_as_a_gpu_does(monkeypatch)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_block_keeps_that_keeps_all(way):
    plan = Plan(compile="kernels", keep_attention=1, keep_linears=1)
    kept, peak = count(WAYS[way], plan, 3600)
    of_block, of_backward = promise(WAYS[way], plan, 3600)
    assert kept == pytest.approx(of_block, rel=0.01)
    assert 0.85 * of_backward < peak < 1.02 * of_backward


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("pieces", "least"), [(1, 0.85), (4, 0.8)])
def test_the_peak_of_a_block_that_runs_again(way, pieces, least):
    """Of others than a plain LoRA rather too much is promised."""
    plan = Plan(compile="kernels", ffn_pieces=pieces)
    kept, peak = count(WAYS[way], plan, 14_040)
    _, of_backward = promise(WAYS[way], plan, 14_040)
    assert kept < 0.01 * of_backward
    assert least * of_backward < peak < 1.02 * of_backward


def test_a_weight_of_8_bits_takes_one_matrix_in_fp32():
    """DoRA looks at each of them so, in every forward."""
    weight = torch.empty(512, 256, dtype=torch.float8_e4m3fn, device=META)
    scale = torch.empty(512, 1, device=META)
    with Counted() as counted:
        found = RowScaledLinear.dequantize(torch.float32, (512, 256), weight, scale)
    assert counted.most == found.nbytes == 4 * 512 * 256
