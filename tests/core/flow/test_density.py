"""The density that is shown is the one that is drawn from."""

import numpy as np
import pytest
import torch
from wan_train.core.flow.density import density_of, draw
from wan_train.core.flow.sigmas import sample_sigmas
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.timesteps import TimestepOptions

PLAIN = LossOptions()
VIDEO = (16, 21, 60, 104)


@pytest.mark.parametrize(
    "options",
    [
        TimestepOptions(sampling="shifted_uniform", shift=5.0, sigma_max=0.875),
        TimestepOptions(sampling="auto_shift", sigma_min=0.875, bias="favor_low_noise"),
        TimestepOptions(sampling="curve", curve="0:1, 0.5:0, 1:3", window="squeezed", sigma_min=0.2, strata=16),
    ],
    ids=lambda options: options.sampling,
)
def test_it_is_how_often_a_level_is_drawn(options):
    density = density_of("stage", options, PLAIN, VIDEO, cells=8)
    drawn = sample_sigmas(options, seed=1, first_draw=0, count=4000, shape=VIDEO)
    counts, _ = np.histogram(drawn.double().numpy(), density.edges)
    assert counts / 4000 == pytest.approx(np.array(density.heights) / 8, abs=0.03)
    assert sum(density.heights) == pytest.approx(8)
    assert drawn.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(density.quartiles, abs=0.03)


def test_weights_of_the_loss_come_beside():
    options = TimestepOptions(sigma_max=0.5)
    assert density_of("stage", options, PLAIN).weighted is None
    assert density_of("stage", options, LossOptions(weighting="motion")).weighted is None
    weighted = density_of("stage", options, LossOptions(weighting="sigma_sqrt"), cells=4).weighted
    middles = np.array([0.0625, 0.1875, 0.3125, 0.4375]) ** -2.0
    assert weighted == pytest.approx(middles / middles.mean(), rel=1e-5)


def test_the_sentence_has_the_quartiles_in_timesteps():
    options = TimestepOptions(sampling="shifted_uniform", shift=5.0, sigma_min=0.875)
    assert density_of("high noise", options, PLAIN).sentence == (
        "high noise, timesteps 875 to 1000: half of all draws from 917 to 977, the middle one 950"
    )


@pytest.mark.parametrize(
    ("sampling", "shape", "told"),
    [
        ("auto_shift", VIDEO, ", shift 5, which is timestep_shift_cap"),  # 404 without a cap
        ("auto_shift", (16, 1, 60, 104), ", shift 2.06"),
        ("flux_shift", VIDEO, ", shift 2.06"),  # frames are not counted
        ("shift", VIDEO, ""),
        ("auto_shift", None, ""),
    ],
)
def test_a_shift_that_follows_the_size_is_told(sampling, shape, told):
    sentence = density_of("high noise", TimestepOptions(sampling=sampling, sigma_min=0.875), PLAIN, shape).sentence
    assert sentence.partition("the middle one ")[2].lstrip("0123456789") == told


def test_the_picture_shows_each_stage_in_its_window():
    stages = [
        density_of("high", TimestepOptions(sigma_min=0.875), PLAIN),
        density_of("low", TimestepOptions(sigma_max=0.875), PLAIN),
    ]
    picture = np.asarray(draw(stages, 800, 400)).astype(int)
    assert picture.shape == (400, 800, 3)
    just_above_the_axis = picture[400 - 88 - 12, 64:776]
    orange = (just_above_the_axis[:, 0] - just_above_the_axis[:, 2] > 30).nonzero()[0] / 712
    blue = (just_above_the_axis[:, 2] - just_above_the_axis[:, 0] > 30).nonzero()[0] / 712
    assert (orange.min(), orange.max()) == pytest.approx((0.875, 1.0), abs=0.01)
    assert (blue.min(), blue.max()) == pytest.approx((0.0, 0.875), abs=0.01)
