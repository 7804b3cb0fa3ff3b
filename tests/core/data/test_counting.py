"""Epochs and steps as people count them, against the batches that a run really takes."""

import pytest
from wan_train.core.data.counting import Length, count_batches, describe_epoch, describe_lengths
from wan_train.core.settings.job import DataSpec, TrainSample
from wan_train.core.train.batches import BatchSchedule

CLIP, SMALL, IMAGE = (16, 3, 8, 8), (16, 3, 4, 4), (16, 1, 8, 8)


def spec(*samples):
    return DataSpec(
        samples=tuple(
            TrainSample(
                name=str(i),
                latents_path="l",
                latents_key=str(i),
                shape=shape,
                text_path="t",
                text_key="t",
                caption="c",
                repeats=repeats,
            )
            for i, (shape, repeats) in enumerate(samples)
        ),
        empty_text_path="e",
        empty_text_key="e",
        text_dim=8,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("token_budget", [None, 10, 50, 100])
def test_the_count_is_that_of_the_schedule(batch_size, token_budget):
    samples = [(CLIP, 2), (SMALL, 1), (IMAGE, 5), (CLIP, 3), (IMAGE, 1)]
    schedule = BatchSchedule(
        spec(*samples), batch_size=batch_size, seed=1, caption_dropout=0.0, token_budget=token_budget
    )
    assert count_batches(samples, batch_size, token_budget) == schedule.batches_per_epoch


def test_an_epoch_is_told():
    assert describe_epoch(Length(batches=1)).endswith("times its repeats: 1 step with batch_size 1")
    told = describe_epoch(Length(batches=1501, batch_size=2, accumulation=2))
    assert told.endswith("750.5 steps with batch_size 2 and gradient_accumulation 2")


def test_steps_of_epochs_and_epochs_of_steps():
    length = Length(batches=7, accumulation=2, steps=1500)
    assert length.steps_of(3) == 11  # 21 batches
    assert length.epochs == pytest.approx(1500 / 3.5)


def test_both_experts_are_told_each_and_in_all():
    length = Length(batches=90, steps=1500)
    (told,) = describe_lengths({"high": length, "low": length})
    assert told.endswith(
        "90 steps with batch_size 1; 1,500 steps are 16.7 epochs; high and low each, 3,000 steps in all"
    )
    (alone,) = describe_lengths({"single": length})
    assert alone.endswith("1,500 steps are 16.7 epochs")
    high, low, together = describe_lengths({"high": length, "low": Length(batches=45, batch_size=2, steps=450)})
    assert high.startswith("high: an epoch")
    assert high.endswith("1,500 steps are 16.7 epochs")
    assert low.endswith("45 steps with batch_size 2; 450 steps are 10 epochs")
    assert together == "in all: 1,950 steps"
    assert describe_lengths({}) == []
