from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wan_train.core.errors import DatasetError
from wan_train.core.train.batches import BatchSchedule, Prefetcher
from wan_train.tests.core.train.helpers import make_sample


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


def test_prefetcher_gives_the_same_batches(data):
    batches = schedule(data)
    prefetcher = Prefetcher(batches, 2)
    for index in (2, 3, 4, 9, 10):
        assert torch.equal(prefetcher.get(index).latents, batches.load(index).latents)
    prefetcher.close()


def test_a_lost_cache_file_is_named(data):
    lost = Path(data.samples[4].latents_path)
    lost.write_bytes(b"short")
    batches = schedule(data, batch_size=1)
    (index,) = [i for i in range(batches.batches_per_epoch) if batches.samples_at(i)[0].name == "s4"]
    with pytest.raises(DatasetError, match=r"s4 can't be read.*delete that file"):
        batches.load(index)
