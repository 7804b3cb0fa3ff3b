"""The short form of every campaign."""

from pathlib import Path

import pytest
from wan_train.tests.campaigns.by_tests import TESTS
from wan_train.tests.campaigns.campaign import NAMES, load
from wan_train.tests.campaigns.gpu import gpu_tests


@pytest.mark.grid(4)
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("page", "grids", "gpu")]
)  # these are tests themselves
def test_nothing_gives_way_in_the_short_form(name, tmp_path, request):
    campaign = load(name)
    if campaign.needs_host:
        request.getfixturevalue("host_path")
    report = campaign.attack(campaign.short, 1, tmp_path)
    assert report.tries >= campaign.short
    assert report.failures == []


def test_the_tests_for_a_gpu_are_found():
    found = {Path(name).relative_to(TESTS).as_posix() for name in gpu_tests()}
    assert {"core/memory/test_cuda.py", "core/train/test_every_method_cuda.py", "core/memory/test_adamw.py"} <= found
    assert "core/test_words.py" not in found
