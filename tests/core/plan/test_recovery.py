"""Out of memory at any operator of any step: the run goes on under a leaner plan, and its weights are what they would be."""

import random
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from wan_train.core.errors import RunError
from wan_train.core.memory.adamw import hold_state
from wan_train.core.plan import recovery
from wan_train.core.plan.advice import explain
from wan_train.core.plan.choice import Choice
from wan_train.core.plan.decision import decide
from wan_train.core.plan.plan import Bucket, Plan, Task, is_graphed
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.recovery import Descent, Recovery, make_state, step_down
from wan_train.core.plan.sizes import Trained
from wan_train.core.shortage import shortage_of
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.features import apply_features
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import call_block
from wan_train.tests.core.plan.test_estimate import CARD
from wan_train.tests.core.train.helpers import SIZE, Direct

CPU = torch.device("cpu")
PLANS = (
    Plan(precision="fp32", checkpointing=False),
    Plan(precision="fp32", keep_attention=2),
    Plan(precision="fp32"),
    Plan(precision="fp32", streamed_blocks=1, offload_optimizer=True),
    Plan(precision="fp32", streamed_blocks=2, stream_from="pageable", offload_inputs=True),
    Plan(precision="fp32", streamed_blocks=2, mapped_blocks=1, offload_optimizer=True),
)


def choice_of(plan, vram=0, ram=0):
    return Choice(plan, {}, vram, ram, 1.0)


class Stairs:
    """The plans one after another, whatever memory is short."""

    def step_down(self, failed, _shortage):
        index = PLANS.index(failed.plan) + 1
        return choice_of(PLANS[index]) if index < len(PLANS) else None

    def explain(self, choice):
        return f"Plan {PLANS.index(choice.plan)}."


class Measured:
    """The real planner."""

    def __init__(self, planner):
        self.step_down = planner.step_down
        self.explain = partial(explain, planner, steps=4)


class FailingMode(TorchDispatchMode):
    """The allocator says no at the operators numbered in `at`, of those that take new memory."""

    def __init__(self, at=()):
        super().__init__()
        self.at = set(at)
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if takes_memory(result, args, kwargs):
            self.count += 1
            if self.count - 1 in self.at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return result


def takes_memory(result, args, kwargs):
    def storages(tree):
        return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}

    return bool(storages(result) - storages((args, kwargs)))


class Budget(TorchDispatchMode):
    """A card of `limit` bytes: counts live results of floating-point operators, on top of what stays on it."""

    def __init__(self, limit, resident):
        super().__init__()
        self.limit, self.live, self.peak = limit - resident, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if takes_memory(result, args, kwargs):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                    storage = leaf.untyped_storage()
                    self.live[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
            self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
            used = sum(size for _, size in self.live.values())
            if used > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a little.")
            self.peak = max(self.peak, used)
        return result


class Run:
    """A trainer with a recovery, and what its plan is made of."""

    def __init__(self, job, path, *, plan=PLANS[0], ladder=None, choice=None):
        self.job = job
        self.scratch = path / "cache"
        self.applied = []
        self.decision = decide(job, inspect(job.model.path), CPU)
        self.prepared = prepare(job, CPU, decision=self.decision, plan=plan)
        self.features = self.prepared.features
        optimizer = build_optimizer(self.prepared.parameters, job.optimizer)
        hold_state(optimizer, offloaded=plan.offload_optimizer)
        self.trainer = Trainer(
            job,
            model=self.prepared.model,
            parameters=self.prepared.parameters,
            optimizer=optimizer,
            batches=Direct(job),
        )
        self.prepared.model.train()
        self.events = EventWriter(path / "events.jsonl")
        self.descent = Descent(choice or choice_of(plan), ladder or Stairs(), events=self.events, device=CPU)
        self.recovery = Recovery(self.descent, apply=self.apply, optimizer=optimizer)

    def apply(self, choice):
        self.features.reset()
        self.features.close()
        self.applied.append(choice.plan)
        hold_state(self.trainer.optimizer, offloaded=choice.plan.offload_optimizer)
        model = self.prepared.model
        model.run_block = call_block
        self.features = apply_features(model, choice.plan, self.decision, tell=pytest.fail, scratch=self.scratch)

    def steps(self, count, *, fails=None):
        """`count` updates; `fails`: step -> numbers of the operators that fail in its attempts."""
        fails, pending = fails or {}, None
        for step in range(self.trainer.step, self.trainer.step + count):
            with FailingMode(fails[step]) if step in fails else nullcontext():
                pending = self.recovery.attempt(self.trainer.train_step, step)
            pending.read()

    def count_operators(self):
        """Of the next update, those that take memory."""
        with FailingMode() as mode:
            self.trainer.train_step()
        return mode.count

    def state(self):
        found = [p.detach().clone() for p in self.prepared.parameters]
        for p in self.prepared.parameters:
            state = self.trainer.optimizer.state[p]
            found += [state[name].clone() for name in sorted(state) if isinstance(state[name], torch.Tensor)]
        return found

    def messages(self):
        return [event["message"] for event in EventReader(self.events.path).read() if event["event"] == "plan"]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def hard_job(job):
    """With dropout and accumulation, whose draws must be the same again."""
    return replace(
        job,
        adapter=replace(job.adapter, dropout=0.3),
        loop=replace(job.loop, steps=4, gradient_accumulation=2),
    )


@pytest.mark.parametrize("seed", range(10))
def test_weights_equal_those_of_a_run_with_the_final_plan_from_there(tmp_path, hard_job, seed):
    draws = random.Random(seed)
    optimizer = draws.choice(["adamw", "adamw8bit"])
    hard_job = replace(hard_job, optimizer=replace(hard_job.optimizer, name=optimizer))
    first = Run(hard_job, tmp_path)
    (tmp_path / "other").mkdir()
    at, operators = draws.randrange(4), 400  # a step has more
    fails = sorted(draws.sample(range(operators), draws.randint(1, 3)))
    first.steps(4, fails={at: fails})
    assert len(first.applied) == len(fails)
    assert len(first.messages()) == len(fails)
    second = Run(hard_job, tmp_path / "other")
    second.steps(at)
    second.apply(choice_of(first.applied[-1]))
    second.steps(4 - at)
    assert second.messages() == []
    assert same(first.state(), second.state())


@pytest.mark.parametrize("offloaded", [False, True])
def test_every_operator_of_an_update_may_fail(tmp_path, job, offloaded):
    """The last ones are the optimizer's: what the first update makes, and all that a later one needs."""
    job = replace(job, adapter=replace(job.adapter, targets=("self_attn",)))
    plan = next(plan for plan in PLANS if plan.offload_optimizer == offloaded)
    plain = Run(job, tmp_path, plan=plan)
    for step, last in enumerate([plain.count_operators(), plain.count_operators()]):
        for number in range(last - 4, last):
            (tmp_path / f"{step}-{number}").mkdir()
            run = Run(job, tmp_path / f"{step}-{number}", plan=plan)
            run.steps(2, fails={step: [number]})
            assert len(run.applied) == 1
            assert same(run.state(), plain.state())


def test_a_small_card_is_found_out_and_fitted(tmp_path, job):
    """A real planner, with a card far too large for the truth, and a simulated one that has less."""
    job = replace(job, data=replace(job.data, samples=job.data.samples[:1]))
    sizes = prepare(job, CPU).model.config
    planner = Planner(
        task=Task(sizes=sizes, trained=Trained(rank=4), element_size=4),
        buckets=[Bucket(job.data.samples[0].shape)],
        card=CARD,
        plan=Plan(precision="fp32"),
    )
    choice = planner.choose()
    assert choice is not None
    assert not choice.plan.checkpointing
    free = Run(job, tmp_path, plan=choice.plan, ladder=Measured(planner), choice=choice)
    with Budget(1 << 40, 0) as measured:
        free.recovery.attempt(free.trainer.train_step, 0)
    free.steps(2)
    assert free.applied == []
    (tmp_path / "small").mkdir()
    small = Run(job, tmp_path / "small", plan=choice.plan, ladder=Measured(planner), choice=choice)
    with Budget(int(measured.peak * 0.8), 0) as card:
        small.recovery.attempt(small.trainer.train_step, 0)
    small.steps(2)
    assert card.peak <= 0.8 * measured.peak
    assert small.applied[-1].checkpointing
    assert small.descent.choice.vram < choice.vram
    assert same(small.state(), free.state())


def test_the_event_says_what_happened(tmp_path, job):
    run = Run(job, tmp_path, plan=PLANS[2])
    run.steps(1, fails={0: [50]})
    (event,) = EventReader(run.events.path).read()
    assert event["event"] == "plan"
    assert event["step"] == 0
    assert event["plan"]["streamed_blocks"] == 1
    assert event["message"] == (
        "The GPU's memory ran out at step 1: the run goes on with block swap of 1 block, optimizer state in "
        "main memory. The result does not change; no step is lost. Plan 3."
    )


def test_after_the_last_plan_a_sentence(tmp_path, job):
    run = Run(job, tmp_path)
    before = [p.detach().clone() for p in run.prepared.parameters]
    with pytest.raises(RunError, match=r"no plan that takes less .*use fewer frames.*the last checkpoint is kept"):
        run.steps(1, fails={0: range(10_000)})
    assert run.applied == list(PLANS[1:])
    assert same(before, [p.detach() for p in run.prepared.parameters])
    assert all(p.grad is None for p in run.prepared.parameters)
    assert not run.trainer.optimizer.state


def test_putting_a_plan_on_may_fail_too(tmp_path, job):
    run = Run(job, tmp_path)
    put_on = run.apply

    def apply(choice):
        if choice.plan == PLANS[1]:
            raise RunError(
                "2.00 GB of main memory could not be pinned for the GPU (CUDA error 2): close other programs."
            )
        put_on(choice)

    run.recovery._apply = apply
    run.steps(1, fails={0: [10]})
    assert run.applied == [PLANS[2]]
    assert ["main memory ran out" in message for message in run.messages()] == [False, True]


def test_an_update_that_had_begun_is_not_done_again(tmp_path, job):
    run = Run(job, tmp_path)
    run.steps(1)

    def broken():
        with torch.no_grad():
            run.prepared.parameters[0].add_(1.0)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RunError, match="in the middle of the update that follows step 1"):
        run.recovery.attempt(broken, 1)


def test_other_errors_pass(tmp_path, job):
    run = Run(job, tmp_path)

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.recovery.attempt(broken, 0)
    assert run.applied == []


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "vram"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "vram"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "vram"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), "ram"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "ram",
        ),
        (MemoryError(), "ram"),
        (RunError("1.00 GB of main memory could not be pinned for the GPU (CUDA error 2)"), "ram"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (KeyboardInterrupt(), None),
    ],
    ids=str,
)
def test_which_memory_is_out(error, shortage):
    assert shortage_of(error) == shortage
    outer = ValueError("could not load the batch")
    outer.__cause__ = error
    assert shortage_of(outer) == shortage


def test_main_memory_is_watched(tmp_path, job, monkeypatch):
    run = Run(job, tmp_path)
    free = [recovery.LOW_RAM - 1, recovery.LOW_RAM]
    monkeypatch.setattr(recovery, "available_ram", lambda: free.pop(0))
    run.steps(2)
    assert run.applied == [PLANS[1]]
    assert run.messages()[0].startswith("The main memory ran out at step 1")


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_state_made_ahead_changes_nothing(tmp_path, job, name):
    """bitsandbytes makes its state between updates of single parameters, else."""
    job = replace(job, optimizer=replace(job.optimizer, name=name))
    run = Run(job, tmp_path)
    make_state(run.trainer.optimizer)
    assert bool(run.trainer.optimizer.state) == (name == "adamw8bit")
    run.trainer.train_step()
    (tmp_path / "plain").mkdir()
    plain = Run(job, tmp_path / "plain")
    plain.trainer.train_step()
    assert same(run.state(), plain.state())


def test_the_loop_goes_through_the_attempt(tmp_path, job):
    assert SIZE.num_layers == 2
    run = Run(replace(job, loop=replace(job.loop, steps=2)), tmp_path)
    seen = []

    def attempt(act, step):
        seen.append(step)
        return act()

    run.trainer.attempt = attempt
    run.trainer.train()
    assert seen == [0, 1]


def test_graphs_that_were_given_up_do_not_come_back():
    task, plan = Task(sizes=WanConfig(), graphs=True), Plan(precision="bf16", compile="kernels")
    planner = Planner(task=task, buckets=[Bucket((16, 1, 64, 64))], card=replace(CARD, free=100 * 2**30), plan=plan)
    choice = planner.describe(replace(plan, checkpointing=False))
    assert is_graphed(planner.task, choice.plan)
    for _ in range(3):
        planner, choice = step_down(planner, choice, "vram")
        assert choice.plan.cuda_graphs == "off"
