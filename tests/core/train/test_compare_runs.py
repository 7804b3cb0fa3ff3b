"""What two runs differ in."""

from dataclasses import replace

from wan_train.core.train.compare_runs import Difference, differences


def test_equal_jobs_differ_in_nothing_and_others_in_what_was_changed(job):
    assert differences(job, job) == []
    other = replace(
        job,
        name="other",
        adapter=replace(job.adapter, rank=8),
        data=replace(job.data, samples=job.data.samples[:2]),
        trigger_word="shp",
    )
    found = differences(job, other)
    assert [one.name for one in found] == ["name", "data.samples", "data.content", "trigger_word", "adapter.rank"]
    assert found[-1] == Difference("adapter.rank", 4, 8)
    assert differences(other, job)[-1] == Difference("adapter.rank", 8, 4)
