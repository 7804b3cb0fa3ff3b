"""Kinds of adapters on a GPU: by kernels, by recorded steps and by plain blocks they train the same."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.memory import graphs as module
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.tests.core.train.helpers import train_in_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
WAYS = {
    "tlora": {"kind": "tlora", "rank": 8},
    "rank dropout": {"rank_dropout": 0.5},
    "module dropout": {"module_dropout": 0.5},
    "oft": {"kind": "oft", "oft_constraint": 1.0},
    "lokr drops": {"kind": "lokr", "rank_dropout": 0.3, "module_dropout": 0.3},
}


def train(tmp_path, job, name, way, **memory):
    options = MemoryOptions(**{"plan": "manual", "attention": "default", "cuda_graphs": "off", **memory})
    made = replace(
        job, memory=options, device="cuda:0", adapter=AdapterOptions(**{"rank": 4, "alpha": 4.0, **WAYS[way]})
    )
    made = replace(made, model=replace(made.model, precision="bf16"), loop=replace(made.loop, steps=9))
    return train_in_folder(tmp_path, made, name, CUDA)


@pytest.mark.parametrize("memory", [{"checkpointing": False}, {"streamed_blocks": 2}, {"split_blocks": True}], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_plan_gives_the_same_losses(tmp_path, job, way, memory):
    wanted, _, _ = train(tmp_path, job, "plain", way, compile="off")
    found, _, _ = train(tmp_path, job, "way", way, compile="off", **memory)
    assert found == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("memory", [{}, {"keep_attention": 2, "keep_linears": 1}, {"split_blocks": True}], ids=str)
@pytest.mark.parametrize("way", ["tlora", "rank dropout", "module dropout"])
def test_by_kernels_it_is_the_same(tmp_path, job, way, memory):
    wanted, _, _ = train(tmp_path, job, "plain", way, compile="off")
    found, _, _ = train(tmp_path, job, "kernels", way, compile="kernels", **memory)
    assert found == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("compile_mode", ["off", "kernels"])
def test_recorded_steps_follow_the_noise(tmp_path, job, compile_mode, monkeypatch):
    recorded, record = [], module._record_cuda
    monkeypatch.setattr(module, "_record_cuda", lambda act, pool: recorded.append(None) or record(act, pool))
    wanted, lora, _ = train(tmp_path, job, "without", "tlora", compile=compile_mode)
    assert not recorded
    found, other, _ = train(tmp_path, job, "with", "tlora", compile=compile_mode, cuda_graphs="auto")
    assert recorded
    assert found == pytest.approx(wanted, rel=1e-4)
    assert all(torch.allclose(value, other[key], rtol=1e-3, atol=1e-6) for key, value in lora.items())
