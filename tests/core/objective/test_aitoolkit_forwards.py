"""Preservation, prior, masks and guidance give the losses and the LoRA's gradients of AI-Toolkit's own training step.

tests/fixtures/aitoolkit/forwards.json, made by make.py beside it with AI-Toolkit 27a03a9.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from wan_train.core.objective.forwards import ClassContext
from wan_train.core.objective.objective import objective_of
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.tests.core.objective import peer_case as case
from wan_train.tests.core.objective import peer_model
from wan_train.tests.core.objective.peer_model import forwards_of, make_model, noisy

THEIRS = json.loads((Path(__file__).parents[2] / "fixtures/aitoolkit/forwards.json").read_text(encoding="utf-8"))
PLAIN, DOP = RegularizerOptions(), RegularizerOptions(output_preservation=70.0)
check = partial(peer_model.check, within=2e-4)
GUIDED = {"contrastive_guidance": 2.5}


def of_class():
    return ClassContext(case.text(seed=case.CLASS, count=2), torch.ones(2))


def trained(job, model, batch, regularizers=PLAIN, **loss):
    """The loss that a step of the job backpropagates, of one batch."""
    objective = objective_of(replace(job, regularizers=regularizers, loss=LossOptions(**loss)))
    groups = objective.terms(batch, forwards_of(model))
    return sum(term.weight * term.losses.mean() for group in groups for term in group)


@pytest.mark.parametrize(
    ("name", "regularizers", "loss"),
    [
        ("plain", PLAIN, {}),
        ("dop", DOP, {}),
        ("dop", replace(DOP, single_pass=True), {}),
        ("blank", RegularizerOptions(blank_preservation=40.0), {}),
        ("guidance", PLAIN, GUIDED),
        ("guidance_sigma", PLAIN, GUIDED | {"contrastive_schedule": "sigma"}),
        ("guidance_cfg_zero", PLAIN, GUIDED | {"contrastive_cfg_zero": True}),
        ("guidance_dop", DOP, GUIDED),
        ("differential", PLAIN, GUIDED | {"differential_guidance": 3.0}),
        ("differential_alone", PLAIN, {}),  # there it is a part of the guidance loss, and does nothing without it
    ],
    ids=str,
)
def test_its_loss_and_gradients(job, name, regularizers, loss):
    model = make_model()
    check(THEIRS[name], model, trained(job, model, replace(noisy(), of_class=of_class()), regularizers, **loss))


@pytest.mark.parametrize(("name", "weight"), [("masks", 0.0), ("masks_dop", 70.0)], ids=["masks", "with dop"])
def test_its_masks_which_it_divides_by_their_mean(job, name, weight):
    """So of our loss that much, and of what is not masked as much as there."""
    model, masks = make_model(), case.masks().unsqueeze(2)
    batch = replace(noisy(masks), of_class=of_class())
    regularizers = RegularizerOptions(output_preservation=weight * masks.mean().item())
    check(THEIRS[name], model, trained(job, model, batch, regularizers) / masks.mean())


def test_its_prior_of_a_regularization_set_and_what_that_counts(job):
    model = make_model()
    batch = replace(noisy(), priors=torch.ones(2, dtype=torch.bool))
    check(THEIRS["prior_reg"], model, 0.3 * trained(job, model, batch, RegularizerOptions(prior_preservation=True)))


def test_its_network_weight_is_an_alpha(job):
    """datasets.network_weight 0.5, where its alpha is the rank."""
    model = make_model(alpha=0.5 * case.RANK)
    check(THEIRS["network_weight"], model, trained(job, model, noisy()))
