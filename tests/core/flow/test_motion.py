"""Latent temporal discrepancy: what moves counts more, what stands still as it always did."""

import math

import pytest
import torch
from wan_train.core.flow.objective import flow_loss, place_weights
from wan_train.core.settings.loss import LossOptions

MOTION = LossOptions(weighting="motion", motion_strength=2.0)


def test_a_place_counts_by_the_logarithm_of_its_change():
    latents = torch.zeros(1, 2, 4, 1, 2)
    latents[0, :, 2:, 0, 1] = torch.tensor([3.0, 1.0]).view(2, 1)  # a jump between frames 1 and 2, at the right place
    jump = math.sqrt((3.0**2 + 1.0**2) / 2)
    found = place_weights(latents, MOTION)
    assert found.shape == (1, 1, 4, 1, 2)
    assert found[0, 0, :, 0, 0].tolist() == [1.0] * 4
    moved = 1 + 2 * math.log1p(jump / 2)  # half: the frame on the other side is the same
    assert found[0, 0, :, 0, 1].tolist() == pytest.approx([1, moved, moved, 1])


@pytest.mark.parametrize("weighting", ["motion", "frame_motion"])
def test_images_and_still_clips_are_trained_as_without_it(weighting):
    options = LossOptions(weighting=weighting)
    image, still = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4).expand(2, 3, 5, 4, 4)
    for latents in (image, still):
        pred, target = torch.randn(2, *latents.shape)
        weighed = flow_loss(pred, target, masks=place_weights(latents, options))
        torch.testing.assert_close(weighed, flow_loss(pred, target))


@pytest.mark.parametrize("weighting", ["motion", "frame_motion"])
def test_nothing_counts_more_at_strength_0(weighting):
    options = LossOptions(weighting=weighting, motion_strength=0.0)
    found = place_weights(torch.randn(2, 3, 5, 4, 4), options)
    torch.testing.assert_close(found, torch.ones_like(found))


@pytest.mark.parametrize("weighting", ["motion", "frame_motion"])
def test_it_goes_together_with_masks(weighting):
    latents, masks = torch.randn(2, 3, 5, 4, 4), torch.rand(2, 1, 5, 4, 4)
    alone = place_weights(latents, LossOptions(weighting=weighting))
    torch.testing.assert_close(place_weights(latents, LossOptions(weighting=weighting), masks), alone * masks)


def test_other_weightings_leave_places_as_they_are():
    masks = torch.rand(2, 1, 5, 4, 4)
    assert place_weights(torch.randn(2, 3, 5, 4, 4), LossOptions(weighting="bell")) is None
    assert place_weights(torch.randn(2, 3, 5, 4, 4), LossOptions(), masks) is masks
