import os
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.data.store import Store, read_entry
from wan_train.core.errors import DatasetError
from wan_train.core.facts import num_tokens
from wan_train.core.flow.objective import sample_noise
from wan_train.core.settings.job import CaptionText
from wan_train.core.train import batches
from wan_train.core.train.batches import BatchSchedule, Prefetcher, load_context, load_tensor, make_draws
from wan_train.tests.core.train.helpers import make_sample, make_trainer


def schedule(data, **changes):
    return BatchSchedule(data, **{"batch_size": 2, "seed": 1, "caption_dropout": 0.0, **changes})


@pytest.fixture
def data(job, tmp_path):
    shapes = [(16, 2, 4, 4)] * 3 + [(16, 1, 4, 6)] * 2
    samples = [make_sample(tmp_path, f"s{i}", shape=shape, repeats=1 + (i == 0)) for i, shape in enumerate(shapes)]
    return replace(job.data, samples=(*samples, make_sample(tmp_path, "held", held_out=True)))


def test_an_epoch_takes_every_sample_as_often_as_it_repeats_and_no_held_out_one(data):
    batches = schedule(data)
    for epoch in range(3):
        indices = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
        counts = Counter(s.name for i in indices for s in batches.samples_at(i))
        assert counts == {"s0": 2, "s1": 1, "s2": 1, "s3": 1, "s4": 1}


def test_a_batch_has_one_shape(data):
    batches = schedule(data)
    assert all(len({s.shape for s in batches.samples_at(i)}) == 1 for i in range(30))


def test_order_is_a_function_of_seed_and_index(data):
    names = [[s.name for s in schedule(data).samples_at(i)] for i in (7, 3, 11)]
    again = schedule(data)
    again.samples_at(0)
    assert [[s.name for s in again.samples_at(i)] for i in (7, 3, 11)] == names
    whole = [[s.name for s in schedule(data).samples_at(i)] for i in range(12)]
    assert whole != [[s.name for s in schedule(data, seed=2).samples_at(i)] for i in range(12)]


def test_text_is_zero_padded_to_512(data):
    batch = schedule(data).load(0)
    assert batch.context.shape[1] == 512
    assert batch.context[:, 5:].abs().sum() == 0
    assert batch.context[:, :5].abs().sum() > 0


def test_captions_are_dropped_at_the_asked_rate(data):
    batches = schedule(data, caption_dropout=0.3)
    dropped = [not row.any() for i in range(300) for row in batches.load(i).context]
    assert 0.25 < sum(dropped) / len(dropped) < 0.35


@pytest.mark.parametrize("ahead", [1, 3])
def test_prefetcher_gives_the_same_batches(data, ahead):
    batches = schedule(data)
    prefetcher = Prefetcher(batches.load, 2, ahead=ahead)
    for index in (2, 3, 4, 9, 10, 5):
        assert torch.equal(prefetcher.get(index).latents, batches.load(index).latents)
    prefetcher.close()


def test_prefetcher_reads_ahead_in_a_thread_and_no_further(data):
    batches, loaded, wanted = schedule(data), [], threading.Event()

    def load(index):
        loaded.append((index, threading.current_thread() is threading.main_thread()))
        if index == 6:
            wanted.set()
        return batches.load(index)

    prefetcher = Prefetcher(load, 3, ahead=2)
    prefetcher.get(3)
    prefetcher.get(4)
    assert wanted.wait(60)
    prefetcher.close()
    assert loaded == [(3, False), (4, False), (5, False), (6, False)]


def test_what_goes_wrong_ahead_is_told_when_its_turn_comes(data):
    batches = schedule(data)

    def load(index):
        if index == 1:
            raise DatasetError("batch 1 is bad")
        return batches.load(index)

    prefetcher = Prefetcher(load, 0, ahead=2)
    assert prefetcher.get(0).names
    with pytest.raises(DatasetError, match="batch 1 is bad"):
        prefetcher.get(1)
    prefetcher.close()


def test_what_failed_ahead_is_tried_again_when_its_turn_comes(data):
    """Memory may have been short for a moment."""
    batches, failed = schedule(data), threading.Event()

    def load(index):
        if index == 1 and not failed.is_set():
            failed.set()
            raise torch.OutOfMemoryError("for a moment")
        return batches.load(index)

    prefetcher = Prefetcher(load, 0)
    try:
        prefetcher.get(0)
        assert failed.wait(60)
        with pytest.raises(torch.OutOfMemoryError):
            prefetcher._pending[1].result(60)
        assert prefetcher.get(1).names == batches.load(1).names
    finally:
        prefetcher.close()


def test_draws_are_a_function_of_seed_and_index_and_none_is_used_twice(job, data):
    job = replace(job, data=data, loop=replace(job.loop, batch_size=2))
    batches = schedule(data)
    draws = [make_draws(job, batches.load(i), i) for i in range(6)]
    for index, drawn in enumerate(draws):
        for i, noise in enumerate(drawn.noise):
            assert torch.equal(noise, sample_noise(noise.shape, seed=job.loop.seed, draw=2 * index + i))
    sigmas = torch.cat([drawn.sigmas for drawn in draws])
    assert len(sigmas.unique()) == len(sigmas)
    assert torch.equal(make_draws(job, batches.load(4), 4).noise, draws[4].noise)


def test_map_changes_every_tensor(job, data):
    batch = schedule(data).load(0)
    batch = replace(batch, conditioning=batch.latents, clip_features=batch.context, draws=make_draws(job, batch, 0))
    changed = batch.map(lambda tensor: tensor + 1)
    for name in ("latents", "context", "conditioning", "clip_features"):
        assert torch.equal(getattr(changed, name), getattr(batch, name) + 1)
    assert torch.equal(changed.draws.noise, batch.draws.noise + 1)
    assert torch.equal(changed.draws.sigmas, batch.draws.sigmas + 1)
    assert changed.names == batch.names
    assert schedule(data).load(0).map(torch.neg).draws is None


@pytest.fixture
def mixed(job, tmp_path):
    """Twelve images of 6 tokens, five clips of 8, three long clips of 80."""
    shapes = [(16, 1, 4, 6)] * 12 + [(16, 2, 4, 4)] * 5 + [(16, 10, 4, 8)] * 3
    return replace(job.data, samples=tuple(make_sample(tmp_path, f"m{i}", shape=s) for i, s in enumerate(shapes)))


def test_a_token_budget_fills_batches_by_shape(mixed):
    batches = schedule(mixed, batch_size=8, token_budget=32)
    sizes = {}
    for i in range(batches.batches_per_epoch):
        samples = batches.samples_at(i)
        assert len({s.shape for s in samples}) == 1
        sizes.setdefault(samples[0].shape, []).append(len(samples))
    assert {shape: sorted(found) for shape, found in sizes.items()} == {
        (16, 1, 4, 6): [2, 5, 5],  # 5 x 6 tokens
        (16, 2, 4, 4): [1, 4],  # 4 x 8
        (16, 10, 4, 8): [1, 1, 1],  # 80: more than the budget alone
    }
    assert [num_tokens(shape) for shape in sizes] == [{1: 6, 2: 8, 10: 80}[shape[1]] for shape in sizes]


def test_a_token_budget_keeps_batch_size_as_the_limit(mixed):
    batches = schedule(mixed, batch_size=3, token_budget=10**6)
    plain = schedule(mixed, batch_size=3)
    for i in range(2 * plain.batches_per_epoch):
        assert batches.samples_at(i) == plain.samples_at(i)


def test_an_epoch_by_token_budget_takes_every_sample_once_and_depends_on_seed_and_index_alone(mixed):
    batches = schedule(mixed, batch_size=8, token_budget=32)
    for epoch in range(2):
        indices = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
        counts = Counter(s.name for i in indices for s in batches.samples_at(i))
        assert set(counts.values()) == {1}
        assert len(counts) == 20
    for index in (11, 2, 7):
        assert schedule(mixed, batch_size=8, token_budget=32).samples_at(index) == batches.samples_at(index)


def test_a_lost_cache_file_is_named(data):
    lost = Path(data.samples[4].latents_path)
    lost.unlink()
    batches = schedule(data, batch_size=1)
    (index,) = [i for i in range(batches.batches_per_epoch) if batches.samples_at(i)[0].name == "s4"]
    with pytest.raises(DatasetError, match=r"latents of s4 are gone from .*s4.latents.safetensors"):
        batches.load(index)


@pytest.fixture
def cached(tmp_path):
    """A sample whose latents the store wrote."""
    store = Store(tmp_path / "cache")
    latents = torch.rand(16, 2, 4, 4)
    store.save("latents", "ab12", {"latents": latents}, {"name": "clip"})
    return store, str(store.path("latents", "ab12")), latents


def flip(path, position=-7):
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 1
    Path(path).write_bytes(data)
    os.utime(path, (1e9, 1e9))  # many a disk's clock has not moved on since the file was written


@pytest.mark.parametrize("is_known", [False, True])
def test_a_damaged_entry_is_named_and_set_aside_so_that_it_is_encoded_again(cached, is_known):
    store, path, latents = cached
    if is_known:  # read before, in this process
        assert torch.equal(load_tensor(path, "latents", "clip"), latents)
    flip(path)
    for _ in range(2):  # a prefetcher tries again
        with pytest.raises(DatasetError, match=r"latents of clip are damaged in .*ab12.*is now called damaged-ab12"):
            load_tensor(path, "latents", "clip")
    assert not store.has("latents", "ab12")
    assert (Path(path).parent / "damaged-ab12.safetensors").is_file()
    store.save("latents", "ab12", {"latents": latents})
    assert torch.equal(load_tensor(path, "latents", "clip", latents.shape), latents)


@pytest.mark.parametrize("damage", ["cut", "empty", "other shape", "another entry", "no tensor"])
def test_whatever_else_is_wrong_with_an_entry_is_damage(cached, damage):
    store, path, latents = cached
    file = Path(path)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other shape":
        store.save("latents", "ab12", {"latents": latents[:8]})
    elif damage == "another entry":
        store.save("latents", "cd34", {"latents": latents + 1})
        store.path("latents", "cd34").replace(file)
    else:
        store.save("latents", "ab12", {"context": latents})
    with pytest.raises(DatasetError, match="are damaged in"):
        load_tensor(path, "latents", "clip", latents.shape)
    assert not file.exists()


def test_an_entry_of_earlier_versions_has_no_checksum_and_is_read(cached):
    _, path, latents = cached
    save_file({"latents": latents}, path)
    assert torch.equal(load_tensor(path, "latents", "clip"), latents)


def test_an_entry_is_hashed_once(cached, monkeypatch):
    _, path, latents = cached
    calls = []
    monkeypatch.setattr(batches, "read_entry", lambda file: calls.append(file) or read_entry(file))
    for _ in range(3):
        assert torch.equal(load_tensor(path, "latents", "clip"), latents)
    assert len(calls) == 1


def test_an_entry_that_is_gone_is_named(cached):
    _, path, _ = cached
    Path(path).unlink()
    with pytest.raises(DatasetError, match=r"latents of clip are gone from .*ab12"):
        load_tensor(path, "latents", "clip")


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_little_memory_is_no_damage(cached, monkeypatch, error):
    def read(_file):
        raise error

    monkeypatch.setattr(batches, "read_entry", read)
    with pytest.raises(type(error)):
        load_tensor(cached[1], "latents", "clip")
    assert Path(cached[1]).is_file()


def test_loss_weights_and_masks_weigh_loss_and_gradient_as_a_sum_by_hand(job, tmp_path):
    path = tmp_path / "mask.safetensors"
    first = job.data.samples[0]
    mask = torch.rand(first.shape[1:], generator=torch.Generator().manual_seed(1))
    save_file({"mask": mask}, path)
    changed = replace(first, loss_weight=2.5, mask_path=str(path), mask_key="m")
    job = replace(job, optimizer=replace(job.optimizer, max_grad_norm=0))
    weighed = replace(job, data=replace(job.data, samples=(changed,)))
    plain = replace(job, data=replace(job.data, samples=(first,)))
    trainer, other = make_trainer(weighed), make_trainer(plain)
    batch = trainer.batches.get(0)
    assert batch.loss_weights.tolist() == [2.5]
    assert torch.equal(batch.masks[0, 0], mask)
    noisy = other.add_noise(other.batches.get(0), 0)
    error = (other.forwards.pred(noisy) - noisy.target).pow(2)  # [1, C, F, H, W]
    by_hand = (error * mask).mean()
    trainer.train_step()
    (2.5 * by_hand).backward()
    norm = torch.stack([p.grad.norm() for p in other.parameters if p.grad is not None]).norm()
    report = make_trainer(weighed).train_step().read()
    assert report.loss == pytest.approx(by_hand.item(), rel=1e-5)  # as people compare it: without the sample's weight
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-4)


def test_a_sample_may_have_a_caption_dropout_of_its_own(job):
    never, always = (replace(s, caption_dropout=c) for s, c in zip(job.data.samples, (0.0, 1.0), strict=False))
    data = replace(job.data, samples=(never, always))
    schedule = BatchSchedule(data, batch_size=1, seed=3, caption_dropout=0.5)
    empty = load_context(data.empty_text_path, "")
    for index in range(8):
        is_empty = torch.equal(schedule.load(index).context[0], empty)
        assert is_empty == (schedule.samples_at(index)[0] is always)


def test_one_of_several_captions_is_drawn_each_time(job):
    first, second = job.data.samples[:2]
    more = (CaptionText(path=second.text_path, key=second.text_key),)
    data = replace(job.data, samples=(replace(first, more_texts=more),))
    schedule = BatchSchedule(data, batch_size=1, seed=3, caption_dropout=0.0)
    drawn = [schedule.load(index).context for index in range(16)]
    expected = [load_context(s.text_path, "") for s in (first, second)]
    counts = [sum(torch.equal(context[0], one) for context in drawn) for one in expected]
    assert sum(counts) == 16
    assert min(counts) >= 3
    again = BatchSchedule(data, batch_size=1, seed=3, caption_dropout=0.0)
    assert all(torch.equal(again.load(i).context, context) for i, context in enumerate(drawn))


def test_the_key_of_a_run_holds_what_is_new_of_a_sample(job):
    def key(**changes):
        samples = (replace(job.data.samples[0], **changes), *job.data.samples[1:])
        return replace(job, data=replace(job.data, samples=samples)).key

    changed = [
        {},
        {"loss_weight": 2.0},
        {"caption_dropout": 0.0},
        {"is_regularization": True},
        {"mask_key": "m"},
        {"more_texts": (CaptionText(path="p", key="k"),)},
    ]
    assert len({key(**changes) for changes in changed}) == len(changed)
