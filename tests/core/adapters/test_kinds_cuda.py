"""Kinds of adapters on a GPU: by kernels, by recorded steps and by plain blocks they train the same."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.memory import graphs as module
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.tests.core.optimizers.helpers import need
from wan_train.tests.core.train.helpers import train_in_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
WAYS = {
    "tlora": {"kind": "tlora", "rank": 8},
    "dropout": {"dropout": 0.3},
    "rank dropout": {"rank_dropout": 0.5},
    "module dropout": {"module_dropout": 0.5},
    "drops": {"dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.3},
    "dora": {"kind": "dora"},
    "dora drops": {"kind": "dora", "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.3},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr whole": {"kind": "lokr", "lokr_full": True, "lokr_factor": 4},
    "lokr drops": {"kind": "lokr", "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.3},
    "oft": {"kind": "oft", "oft_constraint": 1.0},
}


def train(tmp_path, job, name, way, precision="bf16", **memory):
    options = MemoryOptions(**{"plan": "manual", "attention": "default", "cuda_graphs": "off", **memory})
    made = replace(
        job, memory=options, device="cuda:0", adapter=AdapterOptions(**{"rank": 4, "alpha": 4.0, **WAYS[way]})
    )
    made = replace(made, model=replace(made.model, precision=precision), loop=replace(made.loop, steps=9))
    losses, lora, events = train_in_folder(tmp_path, made, name, CUDA)
    return losses, lora, [event["message"] for event in events if event["event"] == "warning"]


@pytest.fixture(scope="module")
def plain_losses():
    """Those of plain blocks, by the adapter and the precision."""
    return {}


@pytest.fixture
def wanted(tmp_path, job, plain_losses):
    """(adapter, precision) -> losses of plain blocks."""

    def find(way, precision="bf16"):
        if (way, precision) not in plain_losses:
            plain_losses[way, precision], _, _ = train(tmp_path, job, "plain", way, precision, compile="off")
        return plain_losses[way, precision]

    return find


@pytest.mark.parametrize("memory", [{"checkpointing": False}, {"streamed_blocks": 2}, {"split_blocks": True}], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_plan_gives_the_same_losses(tmp_path, job, wanted, way, memory):
    found, _, _ = train(tmp_path, job, "way", way, compile="off", **memory)
    assert found == pytest.approx(wanted(way), rel=2e-3)


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"checkpointing": False},
        {"keep_attention": 1},
        {"split_blocks": True},
        {"streamed_blocks": 2, "offload_inputs": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", WAYS)
def test_by_kernels_it_is_the_same(tmp_path, job, wanted, way, memory):
    """What is left out at random as well: kernels draw what plain blocks draw, and again where a block runs again."""
    found, _, warnings = train(tmp_path, job, "kernels", way, compile="kernels", **memory)
    assert warnings == []
    assert found == pytest.approx(wanted(way), rel=2e-3)


@pytest.mark.parametrize("way", ["tlora", "rank dropout", "drops"])
def test_by_kernels_that_keep_products(tmp_path, job, wanted, way):
    found, _, _ = train(tmp_path, job, "kernels", way, compile="kernels", keep_attention=2, keep_linears=1)
    assert found == pytest.approx(wanted(way), rel=2e-3)


@pytest.mark.parametrize("precision", ["fp16", "fp8", "fp8_compute", "int8", "nf4", "int4_svd"])
@pytest.mark.parametrize("way", ["drops", "dora", "loha", "lokr", "oft"])
def test_by_kernels_on_a_quantized_base(tmp_path, job, wanted, way, precision):
    if precision == "nf4":
        need("bitsandbytes")
    found, _, _ = train(tmp_path, job, "kernels", way, precision, compile="kernels", streamed_blocks=1)
    assert found == pytest.approx(wanted(way, precision), rel=1e-2 if precision == "fp8_compute" else 2e-3)


@pytest.mark.parametrize("compile_mode", ["off", "kernels"])
def test_recorded_steps_follow_the_noise(tmp_path, job, compile_mode, monkeypatch):
    recorded, record = [], module._record_cuda
    monkeypatch.setattr(module, "_record_cuda", lambda act, pool: recorded.append(None) or record(act, pool))
    losses, lora, _ = train(tmp_path, job, "without", "tlora", compile=compile_mode)
    assert not recorded
    found, other, _ = train(tmp_path, job, "with", "tlora", compile=compile_mode, cuda_graphs="auto")
    assert recorded
    assert found == pytest.approx(losses, rel=1e-4)
    assert all(torch.allclose(value, other[key], rtol=1e-3, atol=1e-6) for key, value in lora.items())
