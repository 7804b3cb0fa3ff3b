import math

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.flow.shifts import shift_sigma
from wan_train.core.flow.sigmas import sample_sigmas, sigma_at
from wan_train.core.flow.timesteps import SAMPLINGS
from wan_train.core.settings.timesteps import TimestepOptions


def quantile(u, options):
    return SAMPLINGS.get(options.sampling).quantile(u, options)


def cumulative(sigma, options):
    return SAMPLINGS.get(options.sampling).cumulative(sigma, options)


OPTIONS = [
    *(TimestepOptions(sampling=name) for name in SAMPLINGS.names),
    *(TimestepOptions(sampling=name, sigma_min=0.875) for name in SAMPLINGS.names),
    TimestepOptions(sampling="sigmoid", sigmoid_scale=0.8),
    TimestepOptions(sampling="shift", shift=5.0),
    TimestepOptions(sampling="shift", shift=1.0, sigma_min=0.875, sigma_max=1.0),
    TimestepOptions(sampling="sigmoid", sigma_min=0.0, sigma_max=0.875),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.sampling}-{o.sigma_min}-{o.sigma_max}")
def test_cumulative_is_the_inverse_of_quantile(options):
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    back = [cumulative(float(s), options) for s in quantile(u, options)]
    assert torch.allclose(torch.tensor(back, dtype=torch.float64), u, atol=1e-9)


@pytest.mark.grid(8)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.sampling}-{o.sigma_min}-{o.sigma_max}")
def test_draws_follow_the_cut_distribution(options):
    draws = sigma_at(torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64), options)
    assert draws.min() >= options.sigma_min
    assert draws.max() <= options.sigma_max
    # By rejection, as the peers do it: the same distribution.
    raw = quantile(torch.rand(2_000_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64), options)
    kept = raw[(raw >= options.sigma_min) & (raw <= options.sigma_max)]
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    kept = kept[:200_000].sort().values
    shares = torch.searchsorted(kept, draws.quantile(levels)) / len(kept)
    assert torch.allclose(shares.double(), levels, atol=max(8e-3, 2 / len(kept) ** 0.5))  # four times its own error


@pytest.mark.parametrize("name", SAMPLINGS.names)
def test_the_ends_and_the_order(name):
    options = TimestepOptions(sampling=name)
    sigmas = quantile(torch.linspace(0, 1, 1001, dtype=torch.float64).reshape(7, 143), options)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (7, 143)
    assert (sigmas.flatten().diff() > 0).all()
    assert (float(sigmas[0, 0]), float(sigmas[-1, -1])) == pytest.approx((0.0, 1.0), abs=1e-12)  # tan and exp round
    assert (cumulative(0.0, options), cumulative(1.0, options)) == pytest.approx((0.0, 1.0), abs=1e-12)


def test_high_window_of_the_logit_normal_holds_2_6_percent():
    options = TimestepOptions(sampling="sigmoid")
    assert math.isclose(1 - cumulative(0.875, options), 0.0258, abs_tol=1e-4)


def test_shift_matches_the_official_formula():
    assert torch.allclose(shift_sigma(torch.tensor([0.5]), 3.0), torch.tensor([0.75]))
    sigma = torch.tensor([0.1, 0.6, 0.9])
    assert torch.allclose(shift_sigma(shift_sigma(sigma, 12.0), 1 / 12.0), sigma)


def test_draws_depend_on_seed_and_index_alone():
    options = TimestepOptions(strata=4)
    together = sample_sigmas(options, seed=7, first_draw=0, count=12)
    apart = torch.cat([sample_sigmas(options, seed=7, first_draw=i, count=1) for i in range(12)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, sample_sigmas(options, seed=8, first_draw=0, count=12))


def test_strata_cover_the_window_evenly():
    options = TimestepOptions(sampling="uniform", sigma_min=0.2, sigma_max=0.6, strata=8)
    for group in range(5):
        draws = sample_sigmas(options, seed=3, first_draw=8 * group, count=8)
        cells = ((draws - 0.2) / 0.4 * 8).floor().int().tolist()
        assert sorted(cells) == list(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_min": 0.9, "sigma_max": 0.8}, "low before high"),
        ({"sigma_max": 1.5}, "must lie in"),
        ({"shift": 0.0}, "timestep_shift must be at least 0.0001, got 0.0"),
        ({"sigmoid_scale": -1.0}, "sigmoid_scale must be at least 0.0001"),
        ({"strata": 0}, "strata must be at least 1"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TimestepOptions(**change)
