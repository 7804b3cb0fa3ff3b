"""The speed between ranks: measured once by all of them, and kept."""

from pathlib import Path

import torch
from wan_train.core.parallel.world import ALONE
from wan_train.core.plan import link

CPU = torch.device("cpu")


def measured(world, folder):
    """The rate that each rank is given, the second time too; and how often it was measured."""
    import pytest

    calls, plain = [], link.measure_link
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "measure_link", lambda device: calls.append(1) or plain(device))
        found = [link.link_of(world, CPU, Path(folder)) for _ in range(2)]
        return found, len(calls)


def test_it_is_measured_once_and_the_same_for_all(ranks, tmp_path):
    (found, calls), other = ranks(2)(measured, str(tmp_path))
    assert other == (found, calls)
    assert calls == 1
    assert found[0] == found[1] > 0
    assert link.read_link(tmp_path, CPU, 2) == found[0]
    assert link.read_link(tmp_path, CPU, 4) == 0.0


def test_of_another_version_or_damaged_it_is_nothing(tmp_path):
    link._write_link(tmp_path, CPU, 2, 1e9)
    link._write_link(tmp_path, CPU, 4, 2e9)
    assert [link.read_link(tmp_path, CPU, count) for count in (2, 4)] == [1e9, 2e9]
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"version": "', '"version": "old '))
    assert link.read_link(tmp_path, CPU, 2) == 0.0
    path.write_text("{")
    assert link.read_link(tmp_path, CPU, 2) == 0.0


def test_one_gpu_has_no_link(tmp_path):
    assert link.link_of(ALONE, CPU, tmp_path) == 0.0
    assert list(tmp_path.iterdir()) == []
