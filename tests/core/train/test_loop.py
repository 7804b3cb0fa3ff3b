"""The training step on a miniature model: what it computes, and that no memory feature changes it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train import loop
from wan_train.core.train.batches import BatchSchedule, Prefetcher, make_draws
from wan_train.core.train.loop import PendingReport, Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.train.validation import validation_loss
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import SIZE, compute_loss, make_sample, make_trainer
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit


def gradients(job):
    trainer = make_trainer(job)
    loss, _ = compute_loss(trainer, trainer.batches.get(0), 0)
    loss.mean().backward()
    return loss.detach(), [p.grad for p in trainer.parameters]


def with_draws(job, batch, index):
    return replace(batch, draws=make_draws(job, batch, index))


def with_loop(job, **changes):
    return replace(job, loop=replace(job.loop, **changes))


def test_checkpointing_changes_nothing(job):
    job = replace(job, adapter=replace(job.adapter, dropout=0.3))
    plain_loss, plain = gradients(replace(job, memory=replace(job.memory, checkpointing=False)))
    loss, with_checkpointing = gradients(job)
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_checkpointing, strict=True))


def test_checkpointing_keeps_fewer_activations(job):
    kept = {}
    for on in (False, True):
        trainer = make_trainer(replace(job, memory=replace(job.memory, checkpointing=on)))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            compute_loss(trainer, trainer.batches.get(0), 0)
        kept[on] = sum(saved)
    assert kept[True] < kept[False] / 3


def test_every_adapter_parameter_gets_a_gradient_and_the_base_none(job):
    trainer = make_trainer(job)
    trainer.train_step()  # B starts at zero, so A's gradient is zero in the first step
    loss, _ = compute_loss(trainer, trainer.batches.get(1), 1)
    loss.mean().backward()
    assert len(trainer.parameters) == 2 * 10 * 2  # two blocks, ten linears each, A and B
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.parameters)
    base = [p for p in trainer.model.parameters() if not p.requires_grad]
    assert base
    assert all(p.grad is None for p in base)


def test_adapter_weights_are_fp32_on_a_bf16_base(job):
    trainer = make_trainer(replace(job, model=replace(job.model, precision="bf16")))
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    assert trainer.model.blocks[0].self_attn.q.base_layer.weight.dtype == torch.bfloat16
    report = trainer.train_step().read()
    reference = make_trainer(job).train_step().read()
    assert report.loss == pytest.approx(reference.loss, rel=2e-2)
    assert report.loss != reference.loss


def test_sigmas_stay_in_the_experts_window(job):
    high = replace(job, timesteps=TimestepOptions(sigma_min=0.875))
    trainer = make_trainer(high)
    sigmas = torch.cat([compute_loss(trainer, trainer.batches.get(i), i)[1] for i in range(20)])
    assert sigmas.min() >= 0.875
    assert sigmas.max() <= 1.0


def test_accumulation_equals_a_larger_batch(job):
    """Two batches of one sample, and one batch of two, draw the same noise and sigmas: the same update."""
    samples = tuple(s for s in job.data.samples if s.shape == (16, 2, 4, 4))
    job = replace(with_loop(job, caption_dropout=0.0), data=replace(job.data, samples=samples))
    accumulated = make_trainer(with_loop(job, gradient_accumulation=2))
    batched = make_trainer(with_loop(job, batch_size=2))
    for trainer in (accumulated, batched):
        order = [s.name for i in range(2) for s in trainer.batches.schedule.samples_at(i)]
        assert set(order[:2]) == {"a", "c"}
    orders = [
        [s.name for i in range(n) for s in t.batches.schedule.samples_at(i)]
        for t, n in ((accumulated, 2), (batched, 1))
    ]
    if orders[0] != orders[1]:  # the epoch's order differs with the batch size: take the one that is the same
        batched.batches.schedule._epoch_cache[1][0].reverse()
    a, b = accumulated.train_step().read(), batched.train_step().read()
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)


def test_clipping_limits_the_gradient(job):
    free = make_trainer(replace(job, optimizer=replace(job.optimizer, max_grad_norm=0.0)))
    clipped = make_trainer(replace(job, optimizer=replace(job.optimizer, max_grad_norm=1e-3)))
    seen = {}
    for name, trainer in (("free", free), ("clipped", clipped)):
        step = trainer.optimizer.step

        def spy(trainer=trainer, name=name, step=step):
            seen[name] = torch.cat([p.grad.flatten() for p in trainer.parameters]).norm().item()
            step()

        trainer.optimizer.step = spy
        trainer.train_step()
    assert seen["clipped"] == pytest.approx(1e-3, rel=1e-3)
    assert seen["free"] > 1e-2


def test_a_loss_that_is_not_finite_stops_before_the_update(job):
    trainer = make_trainer(job)
    with torch.no_grad():
        trainer.parameters[1].fill_(float("nan"))
    before = [p.clone() for p in trainer.parameters[2:]]
    with pytest.raises(RunError, match=r"not finite at step 1 .*lower learning_rate"):
        trainer.train_step().read()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters[2:], strict=True))


class Watch:
    """Notes each report with the trainer's step then; asks for the weights of the given steps."""

    def __init__(self, *steps):
        self.steps, self.calls = steps, []

    def needs_weights(self, trainer):
        return trainer.step in self.steps

    def __call__(self, trainer, report):
        self.calls.append((report.step, trainer.step, report.loss))


@pytest.fixture
def slow_device(monkeypatch):
    """A device whose numbers are never there before somebody waits for them, as a GPU's."""
    monkeypatch.setattr(PendingReport, "is_ready", lambda _self: False)


def test_on_the_cpu_every_report_comes_at_its_own_step(job):
    watch = Watch()
    make_trainer(job, [watch]).train()
    assert [call[:2] for call in watch.calls] == [(k, k) for k in range(1, 7)]


def test_reports_come_one_step_late_but_in_order_and_in_time_for_the_weights(job, slow_device):
    watch = Watch(4)
    trainer = make_trainer(job, [watch])
    trainer.train()
    assert [call[:2] for call in watch.calls] == [(1, 2), (2, 3), (3, 4), (4, 4), (5, 6), (6, 6)]
    again = make_trainer(job)
    assert [call[2] for call in watch.calls] == [again.train_step().read().loss for _ in range(6)]


def test_a_steps_seconds_are_its_own_whenever_its_report_is_read(job, slow_device, monkeypatch):
    """Of what is done between two steps nothing is counted, and each step but once; by a clock that the test moves."""
    now, found = [0.0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Watch):
        def __call__(self, _trainer, report):
            now[0] += 1000
            found.append(report.seconds)

    trainer = make_trainer(with_loop(job, steps=4), [Slow()])
    batches = trainer.batches

    class Clocked:
        def get(self, index):
            now[0] += index + 1
            return batches.get(index)

    trainer.batches = Clocked()
    trainer.train()
    assert found == [1.0, 2.0, 3.0, 4.0]


def test_a_loss_that_is_not_finite_is_named_by_its_step_and_changes_nothing(job, slow_device):
    """Seen when the next step runs already; weights and optimizer state are those of the step before."""
    trainer = make_trainer(job)
    good = trainer.batches

    class Poisoned:
        def get(self, index):
            batch = good.get(index)
            return batch if index < 2 else replace(batch, latents=batch.latents * float("nan"))

    trainer.batches = Poisoned()
    with pytest.raises(RunError, match=r"not finite at step 3 \(loss nan"):
        trainer.train()
    reference = make_trainer(job)
    for _ in range(2):
        reference.train_step().read()
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, reference.parameters, strict=True))
    for ours, theirs in zip(trainer.parameters, reference.parameters, strict=True):
        state, expected = trainer.optimizer.state[ours], reference.optimizer.state[theirs]
        assert all(torch.equal(state[key], expected[key]) for key in expected)


class ReadsByTheHost(TorchDispatchMode):
    """Counts the operations that make the host wait for a number on the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_step_reads_nothing_from_the_device(job, name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    job = with_loop(job, gradient_accumulation=2)
    trainer = make_trainer(replace(job, optimizer=replace(job.optimizer, name=name)))
    batches = {i: with_draws(job, trainer.batches.get(i), i) for i in range(4)}
    trainer.batches = SimpleNamespace(get=batches.get)
    for _ in range(2):
        with ReadsByTheHost() as reads:
            pending = trainer.train_step()
        assert reads.count == 0
    with ReadsByTheHost() as reads:
        pending.read()
    assert reads.count > 0


def test_a_step_waits_for_nothing_on_a_gpu(job):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    job = replace(job, optimizer=replace(job.optimizer, name="adamw"))
    device = torch.device("cuda:0")
    prepared = prepare(job, device)
    schedule = BatchSchedule(job.data, batch_size=1, seed=1, caption_dropout=0.0)
    batches = Prefetcher(lambda i: with_draws(job, schedule.load(i), i), 0, device=device, ahead=2)
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    trainer = Trainer(job, model=prepared.model, parameters=prepared.parameters, optimizer=optimizer, batches=batches)
    for _ in range(4):
        trainer.train_step().read()  # rope tables, allocations, the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [trainer.train_step() for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        batches.close()
    assert [report.read().step for report in pending] == [5, 6]


def test_draws_made_ahead_are_those_of_the_step(job):
    for index in (0, 3):
        trainer = make_trainer(with_loop(job, batch_size=2))
        batch = trainer.batches.get(index)
        loss, sigmas = compute_loss(trainer, batch, index)
        ahead, ahead_sigmas = compute_loss(trainer, with_draws(trainer.job, batch, index), index + 99)
        assert torch.equal(loss, ahead)
        assert torch.equal(sigmas, ahead_sigmas)


def test_the_gradient_is_the_mean_over_samples_whatever_the_sizes_of_batches(job, tmp_path):
    """Three clips as batches of two and one."""
    samples = tuple(make_sample(tmp_path, name) for name in "xyz")
    job = replace(
        with_loop(job, batch_size=2, gradient_accumulation=2, caption_dropout=0.0),
        data=replace(job.data, samples=samples),
        optimizer=replace(job.optimizer, max_grad_norm=0.0),
    )
    trainer = make_trainer(job)
    report = trainer.train_step().read()
    reference = make_trainer(job)
    losses = torch.cat([compute_loss(reference, reference.batches.get(i), i)[0] for i in range(2)])
    assert len(losses) == 3
    losses.mean().backward()
    norm = torch.stack([p.grad.norm() for p in reference.parameters]).norm().item()
    assert report.loss == pytest.approx(losses.mean().item(), rel=1e-6)
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)


def test_one_clip_is_learnt_by_heart(job, tmp_path):
    """One clip, one caption: the loss on fixed noise falls below a fifth of its start."""
    size = DiTSize(dim=96, ffn_dim=192, num_heads=2, num_layers=2, text_dim=SIZE.text_dim)
    path = tmp_path / "sighted.safetensors"
    save_file(sighted_dit(size), path, metadata=dit_metadata(size))
    clip = make_sample(tmp_path, "still")
    colour = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    save_file({"latents": colour.expand(clip.shape).contiguous()}, clip.latents_path)
    job = replace(
        with_loop(job, steps=60, batch_size=4, caption_dropout=0.0),
        model=replace(job.model, path=str(path), identity=inspect(path).identity),
        data=replace(job.data, samples=(replace(clip, repeats=4), replace(clip, held_out=True))),
        adapter=replace(job.adapter, rank=16, alpha=16.0),
        timesteps=TimestepOptions(sigma_min=0.875),
        optimizer=replace(job.optimizer, learning_rate=5e-3),
        schedule=ScheduleOptions(kind="cosine"),
    )
    trainer = make_trainer(job)
    start, by_sigma, _ = validation_loss(trainer)
    assert len(by_sigma) == 8
    trainer.train()
    end, *_ = validation_loss(trainer)
    assert end < start / 5, (start, end)


def sighted_dit(size):
    """A random base whose head undoes its patch embedding, so that what comes in can be seen in what goes out."""
    weights = wan_dit(size, seed=0)
    embedding = weights["patch_embedding.weight"].view(size.dim, -1)  # [D, C * 4], a patch ordered c, f, h, w
    inverse = (
        torch.linalg.pinv(embedding).view(size.in_dim, 4, size.dim).transpose(0, 1)
    )  # the head's order: f, h, w, c
    weights["head.head.weight"] = inverse.reshape(-1, size.dim).contiguous()
    for name in ("head.head.bias", "head.modulation"):
        weights[name] = torch.zeros_like(weights[name])
    return weights


def test_validation_is_the_same_however_often_it_is_asked(job):
    job = replace(job, data=replace(job.data, samples=(*job.data.samples, replace(job.data.samples[0], held_out=True))))
    trainer = make_trainer(job)
    assert validation_loss(trainer) == validation_loss(trainer)
    assert trainer.model.training


def test_seeded_losses_do_not_change(job):
    """A refactor keeps these numbers; a change of numerics says so in the changelog."""
    trainer = make_trainer(with_loop(job, batch_size=2))
    losses = [trainer.train_step().read().loss for _ in range(4)]
    assert losses == pytest.approx(SEEDED_LOSSES, rel=1e-5)


SEEDED_LOSSES = [3.7422187328338623, 2.761600971221924, 2.4068210124969482, 5.166391372680664]


def test_adamw8bit_trains(job):
    pytest.importorskip("bitsandbytes")
    trainer = make_trainer(replace(job, optimizer=replace(job.optimizer, name="adamw8bit")))
    trainer.train()
    assert type(trainer.optimizer).__name__ == "AdamW8bit"
    assert trainer.step == job.loop.steps


def test_a_changed_model_file_is_refused(job):
    with pytest.raises(ConfigError, match="its content changed"):
        prepare(replace(job, model=replace(job.model, identity="0" * 32)), torch.device("cpu"))


def test_text_of_another_width_is_refused(job):
    with pytest.raises(ConfigError, match=r"have width 99, but mini\.safetensors needs 16"):
        prepare(replace(job, data=replace(job.data, text_dim=99)), torch.device("cpu"))


def test_latents_of_another_vae_are_refused(job):
    wrong = replace(job.data.samples[0], shape=(48, 2, 4, 4))
    with pytest.raises(ConfigError, match=r"a has 48 latent channels, but mini\.safetensors needs 16.*Wan 2\.1 VAE"):
        prepare(replace(job, data=replace(job.data, samples=(wrong,))), torch.device("cpu"))
