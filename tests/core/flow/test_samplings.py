"""The laws of the guides and of the other trainers, each against an independent calculation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from wan_train.core.errors import ConfigError
from wan_train.core.flow.shifts import shift_of_picture, shift_of_tokens
from wan_train.core.flow.sigmas import sample_sigmas, share_below, sigma_at
from wan_train.core.flow.timesteps.beta import incomplete_beta
from wan_train.core.settings.timesteps import TimestepOptions

U = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
QUARTERS = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
LOW, HIGH = {"sigma_max": 0.875}, {"sigma_min": 0.875}
VIDEO = (16, 21, 60, 104)  # 832x480, 81 frames


def options(sampling, **changes):
    return TimestepOptions(sampling=sampling, **changes)


@pytest.mark.parametrize(
    ("window", "quartiles"), [(LOW, [0.4605, 0.6731, 0.7955]), (HIGH, [0.9170, 0.9500, 0.9770])], ids=["low", "high"]
)
def test_shifted_uniform_has_the_quartiles_of_ai_toolkits_shift(window, quartiles):
    """Its own table of 1000 (set_train_timesteps of 27a03a9, shift 5) and the window that it cuts from it."""
    sigmas = sigma_at(QUARTERS, options("shifted_uniform", shift=5.0, **window))
    steps = np.linspace(1000, 1, 1000) / 1000
    table = np.sort(5 * steps / (1 + 4 * steps))
    inside = table[(table > 0.875) if window is HIGH else (table <= 0.875)]
    assert sigmas.tolist() == pytest.approx(np.quantile(inside, QUARTERS), abs=2e-3)
    assert sigmas.tolist() == pytest.approx(quartiles, abs=2e-3)


@pytest.mark.parametrize(("bias", "power"), [("favor_high_noise", -1), ("favor_low_noise", 1)])
@pytest.mark.parametrize("window", [LOW, HIGH], ids=["low", "high"])
def test_bias_is_the_cube_that_ai_toolkit_draws_in_its_window(bias, power, window):
    """Its index in a window of the table: U^3 for content, 1 - U^3 for style (BaseSDTrainProcess.py of 27a03a9).

    The table is finer than its own, whose lowest levels lie 0.005 apart.
    """
    steps = np.linspace(1, 0, 100_001)
    table = 5 * steps / (1 + 4 * steps)  # falls, as theirs does
    inside = np.flatnonzero(table > 0.875) if window is HIGH else np.flatnonzero(table <= 0.875)
    cube = np.random.default_rng(0).random(400_000) ** 3
    place = cube if power < 0 else 1 - cube
    theirs = table[(inside[0] + place * (inside[-1] - inside[0])).astype(int)]
    ours = sigma_at(QUARTERS, options("shifted_uniform", shift=5.0, bias=bias, **window))
    assert ours.tolist() == pytest.approx(np.quantile(theirs, QUARTERS), abs=3e-3)


def test_bias_leaves_the_window_and_favours_its_end():
    medians = [
        float(sigma_at(QUARTERS, options("uniform", sigma_min=0.2, sigma_max=0.6, bias=bias))[1])
        for bias in ("favor_low_noise", "balanced", "favor_high_noise")
    ]
    assert medians == pytest.approx([0.2 + 0.4 / 8, 0.4, 0.6 - 0.4 / 8])


@pytest.mark.parametrize(
    ("made", "law"),
    [
        (options("beta"), stats.beta(2, 2)),
        (options("beta", beta_a=0.5, beta_b=0.7), stats.beta(0.5, 0.7)),
        (options("beta", beta_a=30.0, beta_b=4.0), stats.beta(30, 4)),
    ],
)
def test_beta_is_scipys(made, law):
    assert sigma_at(U, made).tolist() == pytest.approx(law.ppf(U), abs=1e-5)
    cut = replace(made, sigma_min=0.875)
    assert sigma_at(U, cut).tolist() == pytest.approx(law.ppf(law.cdf(0.875) + U.numpy() * law.sf(0.875)), abs=1e-5)


def test_incomplete_beta_is_scipys_to_twelve_digits():
    x = torch.linspace(0.001, 0.999, 501, dtype=torch.float64)
    for a, b in ((0.05, 0.05), (0.5, 20.0), (2.0, 2.0), (100.0, 100.0), (100.0, 0.05)):
        assert np.abs(incomplete_beta(x, a, b).numpy() - special.betainc(a, b, x.numpy())).max() < 1e-12


def test_shifted_beta_is_the_beta_distribution_shifted():
    theirs = stats.beta(2, 2).ppf(U)
    assert sigma_at(U, options("shifted_beta", shift=3.0)).tolist() == pytest.approx(
        3 * theirs / (1 + 2 * theirs), abs=1e-5
    )


def test_logsnr_is_musubis():
    """t = sigmoid(-logsnr / 2), logsnr normal (trainer_base.py of 30c658c)."""
    made = options("logsnr", logsnr_mean=-6.0, logsnr_std=2.0)
    theirs = special.expit(-stats.norm(-6, 2).ppf(1 - U.numpy()) / 2)
    assert sigma_at(U, made).tolist() == pytest.approx(theirs, rel=1e-9)


def test_mode_has_the_density_of_its_paper():
    """f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u), u uniform."""
    u = np.random.default_rng(0).random(400_000)
    for scale in (1.29, -0.9):
        theirs = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        ours = sigma_at(U, options("mode", mode_scale=scale))
        assert ours.tolist() == pytest.approx(np.quantile(theirs, U), abs=3e-3)


def test_the_bell_is_its_density_integrated():
    def density(x):
        return math.exp(-2 * (x - 0.5) ** 2) - math.exp(-0.5)

    whole = integrate.quad(density, 0, 1)[0]
    for sigma in (0.1, 0.3, 0.5, 0.875):
        assert share_below(sigma, options("bell")) == pytest.approx(
            integrate.quad(density, 0, sigma)[0] / whole, abs=1e-7
        )


@pytest.mark.parametrize("window", [{}, LOW, HIGH, {"sigma_min": 0.3, "sigma_max": 0.4}], ids=str)
@pytest.mark.parametrize("text", ["0:1, 0.5:2, 1:0.2", "0.2:0, 0.4:3, 0.45:0, 1:1", "0.5:1", "0:0, 1:1", "0:1, 1:0"])
def test_a_drawn_curve_is_drawn(text, window):
    points = sorted(tuple(map(float, part.split(":"))) for part in text.split(","))
    grid = np.linspace(0, 1, 200_001)
    density = np.interp(grid, *zip(*points, strict=True))
    density[(grid < window.get("sigma_min", 0)) | (grid > window.get("sigma_max", 1))] = 0
    shares = integrate.cumulative_trapezoid(density, grid, initial=0)
    made = options("curve", curve=text, **window)
    expected = np.interp(U.numpy() * shares[-1], shares, grid)
    assert sigma_at(U, made).tolist() == pytest.approx(expected, abs=2e-3 if "0:0" in text else 1e-4)
    for sigma in expected:
        assert share_below(float(sigma), made) == pytest.approx(
            float(np.interp(sigma, grid, shares / shares[-1])), abs=1e-4
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no point"),
        ("0:1, half:2", "has 'half:2', which is no point"),
        ("0:1, 0.5", "has '0.5', which is no point"),
        ("0:1, 2:1", "a point at 2: noise levels go from 0"),
        ("0:1, 1:-3", "the height -3 at 1"),
        ("0:nan", "the height nan"),
        ("0:0, 1:0", "is 0 everywhere"),
        ("0.5:1, 0.5:2", "two points at the same noise level"),
        (",".join(f"{i / 400}:1" for i in range(300)), "more than 256 points"),
    ],
)
def test_a_curve_that_is_none_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        options("curve", curve=text)


def test_a_curve_with_nothing_in_the_window_is_refused():
    with pytest.raises(ConfigError, match=r"timestep_curve is 0 from 0\.875 to 1"):
        options("curve", curve="0:1, 0.5:0", sigma_min=0.875)


def test_shifts_of_sizes_are_those_of_the_samplers():
    """exp(mu) with mu a line from 0.5 at 256 tokens to 1.15 at 4096 (Flux), to 0.9 at 8192 (Qwen-Image)."""
    assert [shift_of_tokens(256), shift_of_tokens(4096)] == pytest.approx([math.exp(0.5), math.exp(1.15)])
    assert shift_of_picture((16, 99, 60, 104)) == pytest.approx(math.exp(0.5 + 0.65 * (1560 - 256) / 3840))
    for name, shift in (("flux_shift", 2.0559318), ("qwen_shift", 1.7607253)):
        found = sigma_at(U, options(name, sigmoid_scale=1.3), VIDEO)
        assert torch.allclose(found, sigma_at(U, options("shift", shift=shift, sigmoid_scale=1.3)), atol=1e-7)


def test_auto_shift_counts_all_tokens_and_stops_at_the_cap():
    picture = (16, 1, 60, 104)
    at = {cap: options("auto_shift", shift_cap=cap) for cap in (5.0, 1000.0)}
    assert torch.equal(sigma_at(U, at[5.0], picture), sigma_at(U, options("flux_shift"), VIDEO))
    assert torch.equal(sigma_at(U, at[5.0], VIDEO), sigma_at(U, options("shift", shift=5.0)))
    uncapped = math.exp(0.5 + 0.65 * (32760 - 256) / 3840)
    assert uncapped == pytest.approx(404, abs=1)
    assert torch.allclose(sigma_at(U, at[1000.0], VIDEO), sigma_at(U, options("shift", shift=uncapped)))
    assert sigma_at(U, at[5.0], (16, 10_001, 512, 512)).max() < 1  # where the exponential would overflow


@pytest.mark.parametrize(
    ("name", "parts"),
    [("qinglong_flux", [(0.79, None), (0.11, (-1.0, 2.5)), (0.10, (5.36, 1.0))]),
     ("qinglong_qwen", [(0.95, None), (0.05, (5.36, 1.0))])],
)  # fmt: skip
def test_qinglongs_mixtures(name, parts):
    """Drawn part by part, as musubi-tuner does (trainer_base.py of 30c658c)."""
    rng = np.random.default_rng(0)
    shift = 2.0559318 if name == "qinglong_flux" else 1.7607253
    drawn = []
    for share, law in parts:
        normal = rng.standard_normal(int(400_000 * share))
        if law is None:
            t = special.expit(normal)
            drawn.append(t * shift / (1 + (shift - 1) * t))
        else:
            drawn.append(special.expit(-(law[0] + law[1] * normal) / 2))
    given = {"logsnr_mean": -1.0, "logsnr_std": 2.5} if name == "qinglong_flux" else {}
    ours = sigma_at(U, options(name, **given), VIDEO)
    assert ours.tolist() == pytest.approx(np.quantile(np.concatenate(drawn), U), abs=4e-3)


def test_squeezed_is_what_musubi_does_without_preserve_distribution_shape():
    whole = sigma_at(U, options("shift", shift=5.0))
    squeezed = sigma_at(U, options("shift", shift=5.0, sigma_min=0.875, window="squeezed"))
    assert torch.allclose(squeezed, whole * 0.125 + 0.875)


@pytest.mark.parametrize("bias", ["balanced", "favor_high_noise", "favor_low_noise"])
@pytest.mark.parametrize("window", ["cut", "squeezed"])
def test_share_below_is_the_inverse_of_what_is_drawn(bias, window):
    made = options("auto_shift", sigma_min=0.2, sigma_max=0.9, bias=bias, window=window)
    assert [share_below(float(s), made, VIDEO) for s in sigma_at(U, made, VIDEO)] == pytest.approx(U.tolist(), abs=1e-9)
    assert [share_below(s, made) for s in (0.0, 0.2, 0.9, 1.0)] == [0, 0, 1, 1]


def test_draws_take_the_size_of_the_sample():
    small, large = (
        sample_sigmas(options("auto_shift"), seed=1, first_draw=0, count=50, shape=shape)
        for shape in ((16, 1, 16, 16), VIDEO)
    )
    assert (small < large).all()
