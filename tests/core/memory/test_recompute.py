import copy
import gc
import logging
from collections import Counter

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode
from wan_train.core.errors import ConfigError
from wan_train.core.memory.compile import with_compile
from wan_train.core.memory.recompute import (
    ATTENTION_OPS,
    Kept,
    attention_bytes,
    with_selective_recompute,
)
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import CONFIG, SHAPES, assert_same, forward_loss, make_model, step

NUM_BLOCKS = CONFIG.num_layers


class CountAttention(TorchDispatchMode):
    """Counts the attention operators that run: with as many keys as queries ("self"), and with others."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if is_attention(func):
            self.counts["self" if args[0].shape == args[1].shape else "cross"] += 1
        return func(*args, **(kwargs or {}))


def is_attention(op) -> bool:
    return isinstance(op, torch._ops.OpOverload) and op.name().split(".")[0] in ATTENTION_OPS


@pytest.mark.parametrize("keep", [0, 1, 4, NUM_BLOCKS])
def test_self_attention_runs_once_in_kept_blocks_and_twice_in_others(keep):
    model = make_model()
    expected = step(model, SHAPES[0])
    model.run_block = with_selective_recompute(call_block, model.blocks, Kept(keep))
    with CountAttention() as counter:
        found = step(model, SHAPES[0])
    assert counter.counts == {"self": 2 * NUM_BLOCKS - keep, "cross": 2 * NUM_BLOCKS}
    assert_same(found, expected)


def test_last_blocks_are_kept_and_a_copy_of_the_model_keeps_the_same():
    model = make_model()
    model.run_block = with_selective_recompute(call_block, model.blocks, Kept(2))
    assert [block.keeps_attention for block in model.blocks] == [False] * 4 + [True] * 2
    clone = copy.deepcopy(model)
    with CountAttention() as counter:
        step(clone, SHAPES[2])
    assert counter.counts["self"] == 2 * NUM_BLOCKS - 2
    model.run_block = with_selective_recompute(call_block, model.blocks, Kept())
    assert not any(block.keeps_attention for block in model.blocks)


@pytest.mark.parametrize("linears", [0, NUM_BLOCKS])
@pytest.mark.parametrize("quant", [None, "Q8_0"])
def test_an_image_with_as_many_tokens_as_the_text_keeps_its_self_attention_alone(linears, quant):
    """512 tokens of both: queries and keys have the same shape in self- and in cross-attention."""
    model = make_model(CONFIG, torch.float32, quant)
    latents, context = torch.randn(1, CONFIG.in_dim, 1, 32, 64), torch.randn(1, 512, CONFIG.text_dim)
    shapes = []
    model.attend = note_shapes(model.attend, shapes)
    model.run_block = with_selective_recompute(
        call_block, model.blocks, Kept(NUM_BLOCKS, linears), width=CONFIG.dim if linears else 0
    )
    with CountAttention() as counter:
        model(latents, torch.tensor([500.0]), context).square().mean().backward()
    assert set(shapes) == {(1, 512, CONFIG.num_heads, CONFIG.dim // CONFIG.num_heads)}
    assert counter.counts == {"self": 3 * NUM_BLOCKS}  # self-attention once, cross-attention twice


def note_shapes(attend, shapes):
    def run(q, k, v):
        shapes.extend(tuple(tensor.shape) for tensor in (q, k))
        return attend(q, k, v)

    return run


def storages() -> dict[int, torch.UntypedStorage]:
    """Of all tensors that Python objects hold, by address."""
    gc.collect()
    found = [tensor.untyped_storage() for tensor in gc.get_objects() if type(tensor) is torch.Tensor]
    return {storage.data_ptr(): storage for storage in found}


def bytes_added(act) -> int:
    """Of the storages that tensors hold after `act`, and did not hold before.

    Those of before are held until it is over: what other tests have left is else freed meanwhile, and its place used again.
    """
    before = storages()
    result = act()
    added = sum(storage.nbytes() for address, storage in storages().items() if address not in before)
    del result
    return added


def test_bytes_kept_are_those_planned():
    batch, _, frames, height, width = shape = SHAPES[2]
    tokens = batch * frames * height * width // 4
    model = make_model()
    model.run_block = with_selective_recompute(call_block, model.blocks, Kept())
    step(model, shape)  # the rope table of this size stays
    kept = {}
    for keep in (0, NUM_BLOCKS):
        model.run_block = with_selective_recompute(call_block, model.blocks, Kept(keep))
        kept[keep] = bytes_added(lambda: forward_loss(model, shape))
    planned = NUM_BLOCKS * attention_bytes(tokens, CONFIG.dim, CONFIG.num_heads, element_size=4)
    assert planned <= kept[NUM_BLOCKS] - kept[0] < 1.05 * planned  # torch keeps some bytes of its own


def test_bytes_of_the_14b_model():
    assert attention_bytes(32760, 5120, 40) == 32760 * 5120 * 2 + 32760 * 40 * 4


@pytest.mark.parametrize("keep", [-1, NUM_BLOCKS + 1])
@pytest.mark.parametrize("name", Kept._fields)
def test_number_of_blocks_is_checked(name, keep):
    option = "offload_linears" if name == "moved" else f"keep_{name}"
    with pytest.raises(ConfigError, match=f"{option} must be from 0 to {NUM_BLOCKS}, .*, got {keep}"):
        with_selective_recompute(call_block, make_model().blocks, Kept(**{name: keep}))


def test_without_gradients_nothing_is_kept():
    model = make_model()
    with torch.no_grad():
        expected = forward_loss(model, SHAPES[0])
        model.run_block = with_selective_recompute(call_block, model.blocks, Kept(NUM_BLOCKS))
        with CountAttention() as counter:
            assert torch.equal(forward_loss(model, SHAPES[0]), expected)
    assert counter.counts["self"] == NUM_BLOCKS


@pytest.mark.parametrize(("keep", "in_forward_and_backward"), [(0, [2, 2]), (NUM_BLOCKS, [2, 1])])
def test_compiled_backward_recomputes_only_what_is_not_kept(monkeypatch, keep, in_forward_and_backward):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep each record
    torch._dynamo.reset()
    counts = []

    def count(graph_module, inputs):
        del inputs
        # An operator that is to be repeated is an argument of one that restores the random state.
        operands = [(node.target, *node.args) for node in graph_module.graph.nodes if node.op == "call_function"]
        counts.append(sum(any(is_attention(op) for op in ops) for ops in operands))
        return make_boxed_func(graph_module)

    model = make_model()
    expected = step(model, SHAPES[0])
    backend = aot_autograd(fw_compiler=count, bw_compiler=count, partition_fn=min_cut_rematerialization_partition)
    run_block = with_selective_recompute(call_block, model.blocks, Kept(keep))
    model.run_block = with_compile(run_block, tell=pytest.fail, backend=backend)
    found = step(model, SHAPES[0])
    for result, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(result, reference)
    assert counts == in_forward_and_backward
