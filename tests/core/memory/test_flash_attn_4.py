import pytest
import torch
from torch._subclasses import FakeTensorMode
from wan_train.core.errors import ConfigError
from wan_train.core.memory import flash_attn_4
from wan_train.core.memory.attention import TOLERANCES, AttentionShape, choose_attention, largest_error
from wan_train.core.memory.deterministic import same_bits
from wan_train.core.memory.recompute import ATTENTION_OPS

QUERIES, KEYS = (2, 300, 4, 64), (2, 77, 4, 64)


def test_the_compiler_is_told_the_right_shapes():
    with FakeTensorMode():
        q, k = (torch.empty(size, dtype=torch.bfloat16, device="cuda") for size in (QUERIES, KEYS))
        out, logsumexp = flash_attn_4.forward(q, k, k)
        assert (out.shape, out.dtype) == (torch.Size(QUERIES), torch.bfloat16)
        assert (logsumexp.shape, logsumexp.dtype) == (torch.Size([2, 4, 300]), torch.float32)
        gradients = flash_attn_4.backward(out, q, k, k, out, logsumexp)
        assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, k.shape]


def test_checkpointing_knows_the_operator():
    assert flash_attn_4.forward._opoverload.name() in ATTENTION_OPS


def test_its_backward_is_asked_for_the_same_bits_where_they_are_wanted():
    def today(q, k, v, out, grad, logsumexp, deterministic=False):
        return q, k, v, out, grad, logsumexp, deterministic

    def before(q, k, v, out, grad, logsumexp):
        return q, k, v, out, grad, logsumexp

    assert flash_attn_4.order_of(today) == flash_attn_4.order_of(before) == {}
    with same_bits(True):
        assert flash_attn_4.order_of(today) == {"deterministic": True}
        with pytest.raises(ConfigError, match="flash-attn-4 knows no deterministic backward"):
            flash_attn_4.order_of(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_right_and_traceable(compiled):
    pytest.importorskip(flash_attn_4.MODULE)
    shape = AttentionShape(512, 4, 128, torch.bfloat16, torch.device("cuda:0"))
    choice = choose_attention("flash_attn_4", shape, compiled=compiled)
    assert largest_error(choice.attend, shape, num_keys=300) <= TOLERANCES[torch.bfloat16]
