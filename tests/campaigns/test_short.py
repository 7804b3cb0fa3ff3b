"""The short form of every campaign."""

import pytest
from wan_train.tests.campaigns.campaign import NAMES, load


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("page", "grids")]
)  # these are tests themselves
def test_nothing_gives_way_in_the_short_form(name, tmp_path, request):
    campaign = load(name)
    if campaign.needs_host:
        request.getfixturevalue("host_path")
    report = campaign.attack(campaign.short, 1, tmp_path)
    assert report.tries >= campaign.short
    assert report.failures == []
