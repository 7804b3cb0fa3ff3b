"""A step that breaks off, at any operator that takes memory, leaves none of it behind: the next plan finds it free."""

import gc

import pytest
import torch
from wan_train.core.memory import offload_results
from wan_train.core.plan.decision import decide
from wan_train.core.plan.plan import Plan
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.plan.test_recovery import FailingMode
from wan_train.tests.core.train.helpers import Direct

CPU = torch.device("cpu")
WAYS = (
    {"checkpointing": False},
    {"keep_attention": 2, "keep_linears": 1},
    {"offload_inputs": True, "keep_attention": 2, "keep_linears": 2},
    {"streamed_blocks": 2, "offload_inputs": True, "keep_attention": 2, "keep_linears": 1},
    {"split_blocks": True, "offload_inputs": True, "keep_attention": 1},
    {"streamed_blocks": 2, "offload_inputs": True, "keep_attention": 2, "offload_linears": 2},
)


def trainer_of(job, plan):
    prepared = prepare(job, CPU, decision=decide(job, inspect(job.model.path), CPU), plan=plan)
    prepared.model.train()
    parameters = prepared.parameters
    optimizer = build_optimizer(parameters, job.optimizer)
    trainer = Trainer(job, model=prepared.model, parameters=parameters, optimizer=optimizer, batches=Direct(job))
    return trainer, prepared.features


def alive():
    """Of all tensors of more than a number that Python knows, by the place of their memory."""
    # On a CPU autograd's queue is the thread's own: what a backward that broke off left there goes with the next.
    torch.zeros(1, requires_grad=True).sum().backward()
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return {one.untyped_storage().data_ptr(): tuple(one.shape) for one in tensors if one.numel() > 1}


@pytest.mark.grid(3)
@pytest.mark.parametrize("compiled", ["off", "kernels"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nothing_is_left(job, way, compiled, monkeypatch):
    if compiled == "kernels":
        pytest.importorskip("triton")
        monkeypatch.setattr(offload_results, "LEAST", 1)
        from wan_train.tests.core.kernels import reference

        reference.put_in_place(monkeypatch)
    trainer, features = trainer_of(job, Plan(precision="fp32", **({"streamed_blocks": 0} | way), compile=compiled))
    trainer.train_step()
    with FailingMode() as counted:
        trainer.train_step()
    features.reset()
    before = alive()
    failures = 0
    for at in range(0, counted.count - 1, max(1, counted.count // 4)):
        try:
            with FailingMode({at}):
                trainer.train_step()
        except torch.OutOfMemoryError:
            failures += 1
        trainer.optimizer.zero_grad(set_to_none=True)
        features.reset()
        left = alive()
        assert not [shape for place, shape in left.items() if place not in before], at
    assert failures > 2
    features.close()
