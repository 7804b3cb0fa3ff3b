"""Losses, weightings and laws against what the other trainers' own code gave for the same numbers, run once.

SimpleTuner bc8e6ab: conditional_loss and compute_scheduled_huber_c of models/common.py. AI-Toolkit 27a03a9: get_weights_for_
timesteps and set_train_timesteps of toolkit/samplers/custom_flowmatch_sampler.py. AkaneTendo25's musubi-tuner e0e570f:
apply_latent_temporal_weighting of ltx2_latent_temporal.py.
"""

import math

import pytest
import torch
from torch.nn import functional as F
from wan_train.core.flow.losses._pseudo import width
from wan_train.core.flow.objective import flow_loss, place_weights, weigh
from wan_train.core.flow.sigmas import sigma_at
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.timesteps import TimestepOptions

DISTANCES = torch.tensor([-3.0, -0.5, 0.0, 0.05, 0.2, 1.0, 4.0]).view(-1, 1, 1, 1, 1)
SIGMAS = torch.tensor([0.0, 0.25, 0.5, 0.875, 1.0])
LEVELS = torch.tensor([1.0, 0.95, 0.876, 0.7, 0.5, 0.3, 0.1, 0.001])


def losses(sigmas=None, **options):
    return flow_loss(DISTANCES, torch.zeros_like(DISTANCES), sigmas=sigmas, options=LossOptions(**options))


@pytest.mark.parametrize(
    ("kind", "c", "theirs"),
    [
        ("pseudo_huber", 0.1, [0.5803333, 0.0819804, 0.0, 0.0023607, 0.0247214, 0.1809975, 0.78025]),
        ("pseudo_huber", 0.7, [3.3328178, 0.2243256, 0.0, 0.0024968, 0.0392154, 0.7289178, 4.7051034]),
        ("soft_l1", 0.1, [5.8033328, 0.8198039, 0.0, 0.0236068, 0.2472136, 1.8099751, 7.8024998]),
        ("soft_l1", 0.7, [4.7611685, 0.3204651, 0.0, 0.0035669, 0.056022, 1.0413111, 6.7215762]),
    ],
)
def test_simpletuners_huber_and_smooth_l1(kind, c, theirs):
    assert losses(kind=kind, huber_c=c).tolist() == pytest.approx(theirs, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("constant", [0.1] * 5),
        ("exponential", [1.0, 0.5623413, 0.3162278, 0.1333521, 0.1]),
        ("snr", [0.1000882, 0.2206077, 0.3250225, 0.5740018, 1.0]),
    ],
)
def test_simpletuners_schedules_of_the_width(schedule, theirs):
    assert width(SIGMAS, LossOptions(huber_schedule=schedule)).flatten().tolist() == pytest.approx(theirs, rel=2e-5)


@pytest.mark.parametrize("kind", ["pseudo_huber", "soft_l1"])
def test_each_sample_has_the_width_of_its_own_level(kind):
    sigmas = torch.linspace(0, 1, 7)
    together = losses(sigmas, kind=kind, huber_schedule="exponential")
    c = [math.exp(math.log(0.1) * sigma) for sigma in sigmas.tolist()]
    apart = [losses(kind=kind, huber_c=each)[place] for place, each in enumerate(c)]
    torch.testing.assert_close(together, torch.stack(apart))


def test_a_tiny_error_is_not_lost_in_the_root():
    tiny = torch.full((1, 1, 1, 1, 1), 1e-5)
    loss = flow_loss(tiny, torch.zeros_like(tiny), options=LossOptions(kind="pseudo_huber", huber_c=1.0))
    assert loss.item() == pytest.approx(1e-10, rel=1e-5)


def test_mae_huber_and_smooth_l1_are_pytorchs():
    zeros = torch.zeros_like(DISTANCES)
    for kind, options, theirs in (
        ("mae", {}, F.l1_loss(DISTANCES, zeros, reduction="none")),
        ("huber", {"huber_delta": 0.3}, F.huber_loss(DISTANCES, zeros, reduction="none", delta=0.3)),
        ("smooth_l1", {"huber_delta": 0.3}, F.smooth_l1_loss(DISTANCES, zeros, reduction="none", beta=0.3)),
    ):
        assert torch.equal(losses(kind=kind, **options), theirs.flatten())
    assert losses(kind="huber", huber_delta=0.3).tolist() == pytest.approx(
        [0.3 * (3 - 0.15), 0.3 * (0.5 - 0.15), 0, 0.05**2 / 2, 0.2**2 / 2, 0.3 * 0.85, 0.3 * 3.85]
    )


@pytest.mark.parametrize(
    ("weighting", "theirs"),
    [
        ("bell", [0.0, 0.242664, 0.590846, 1.270951, 1.579605, 1.270951, 0.480215, 0.00487]),
        ("half_bell", [0.0, 0.242664, 0.590846, 1.270951, 1.579605, 1.579605, 1.579605, 1.579605]),
        ("weighted", [0.905707, 1.374837, 1.522658, 1.26355, 0.925404, 0.731226, 0.716217, 0.44726]),
    ],
)
def test_ai_toolkits_weights(weighting, theirs):
    found = weigh(torch.ones(8), LEVELS, LossOptions(weighting=weighting))
    assert found.tolist() == pytest.approx(theirs, abs=6e-5)


@pytest.mark.parametrize("weighting", ["bell", "weighted"])
def test_ai_toolkits_weights_have_a_mean_of_one(weighting):
    sigmas = torch.linspace(1, 1000, 1000) / 1000
    assert weigh(torch.ones(1000), sigmas, LossOptions(weighting=weighting)).mean().item() == pytest.approx(1, abs=1e-3)


def test_weighted_between_two_timesteps_lies_between_their_weights():
    at = weigh(torch.ones(3), torch.tensor([0.9, 0.9005, 0.901]), LossOptions(weighting="weighted"))
    assert at[1].item() == pytest.approx((at[0] + at[2]).item() / 2, abs=1e-6)


def test_musubis_weighting_schemes():
    """sigma_sqrt: sigma^-2; cosmap: 2 / (pi (1 - 2 sigma + 2 sigma^2))."""
    sigmas = torch.tensor([0.001, 0.25, 0.5, 1.0])
    squared = weigh(torch.ones(4), sigmas, LossOptions(weighting="sigma_sqrt"))
    assert squared.tolist() == pytest.approx([1e6, 16, 4, 1])
    cosmap = weigh(torch.ones(4), sigmas, LossOptions(weighting="cosmap"))
    assert cosmap.tolist() == pytest.approx([2 / math.pi / x for x in (0.998002, 0.625, 0.5, 1.0)])


@pytest.mark.parametrize(
    ("strength", "theirs"),
    [
        (0.5, [[0.6855180, 0.8393491, 1.0831842, 1.1915244, 1.2004243],
               [0.6821270, 0.8266027, 1.1032121, 1.2030942, 1.1849637]]),
        (4.0, [[0.4757594, 0.5846491, 1.1414821, 1.3888924, 1.4092168],
               [0.4750237, 0.5546821, 1.1853830, 1.4131254, 1.3717855]]),
    ],
)  # fmt: skip
def test_frame_motion_is_that_of_the_trainer_for_ltx_2(strength, theirs):
    sizes = torch.tensor([0.01, 0.05, 1, 3, 0.2]).view(1, 1, 5, 1, 1)
    latents = torch.randn(2, 4, 5, 3, 3, generator=torch.Generator().manual_seed(3)) * sizes
    found = place_weights(latents, LossOptions(weighting="frame_motion", motion_strength=strength))
    torch.testing.assert_close(found.view(2, 5), torch.tensor(theirs))


@pytest.mark.parametrize(
    ("window", "theirs"),
    [({"sigma_max": 0.875}, [467.581, 675.366, 795.948]), ({"sigma_min": 0.875}, [916.755, 950.048, 977.292])],
)
def test_shifted_uniform_is_ai_toolkits_shift(window, theirs):
    """Its table ends at 24, as its lowest level is shifted twice, and has 1000 entries: so the low quartiles are near ours."""
    options = TimestepOptions(sampling="shifted_uniform", shift=5.0, **window)
    ours = 1000 * sigma_at(torch.tensor([0.25, 0.5, 0.75]), options)
    assert ours.tolist() == pytest.approx(theirs, abs=8.0 if "sigma_max" in window else 0.5)
