"""The option reaches the process that trains, and a run that was stopped ends as one that was not, in other processes."""

from dataclasses import replace

from wan_train.core.memory.deterministic import CUBLAS, NCCL
from wan_train.core.train.kept_plan import FILE
from wan_train.tests.core.launch.deterministic_runs import assert_same, bits, in_parts, losses, warnings, whole


def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(tmp_path, job, monkeypatch):
    for name in (CUBLAS, NCCL):
        monkeypatch.delenv(name, raising=False)
    job = replace(job, memory=replace(job.memory, deterministic=True))
    one, other = whole(tmp_path, job), in_parts(tmp_path, job)
    assert_same(bits(one), bits(other))
    assert losses(one) == losses(other)
    assert warnings(one) == warnings(other) == []
    assert (one.path / FILE).read_bytes() == (other.path / FILE).read_bytes()
    assert f"Deterministic: {CUBLAS}=:4096:8, {NCCL}=Ring\n" in other.log_path.read_text()
