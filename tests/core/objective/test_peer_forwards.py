"""TREAD, rollouts and CREPA give the losses and the LoRA's gradients that SimpleTuner's own code gave for the same numbers.

tests/fixtures/simpletuner/forwards.json, made by make.py beside it with SimpleTuner bc8e6ab.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wan_train.core.objective.crepa import Projection, chosen_frames
from wan_train.core.objective.objective import FlowMatching
from wan_train.core.objective.rollout import RollOut, direction_loss
from wan_train.core.routes import Route, routes_among
from wan_train.core.settings.crepa import CrepaOptions
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.rollout import RolloutOptions
from wan_train.core.train.crepa import Crepa
from wan_train.core.wan.walk import Look
from wan_train.tests.core.objective import peer_case as case
from wan_train.tests.core.objective.peer_model import check, forwards_of, make_model, noisy

THEIRS = json.loads((Path(__file__).parents[2] / "fixtures/simpletuner/forwards.json").read_text(encoding="utf-8"))


@pytest.fixture
def model():
    return make_model()


def learnt(model, batch):
    ((term,),) = FlowMatching(LossOptions()).terms(batch, forwards_of(model))
    return term.losses.mean()


def test_the_plain_forward(model):
    check(THEIRS["plain"], model, learnt(model, noisy()))


def test_tread(model):
    model.routes = routes_among([Route(*route) for route in case.ROUTES], case.NUM_LAYERS)
    kept = torch.cat([torch.tensor(tokens) for tokens in THEIRS["tread"]["kept"]], dim=1)
    check(THEIRS["tread"], model, learnt(model, replace(noisy(), kept_tokens=kept)))


def test_rollout(model):
    rolled = RollOut(RolloutOptions(steps=3))(replace(noisy(), rollouts=case.ROLLOUTS), forwards_of(model))
    assert rolled.timesteps.tolist() == pytest.approx(THEIRS["rollout"]["timesteps"])
    norm, row = THEIRS["rollout"]["noisy"]
    assert rolled.noisy_latents.norm().item() == pytest.approx(norm, rel=1e-6)
    assert rolled.noisy_latents[0, 0, 0, 0].tolist() == pytest.approx(row, rel=1e-4, abs=1e-5)
    check(THEIRS["rollout"], model, learnt(model, rolled))
    pred = forwards_of(model).pred(rolled)
    assert direction_loss(pred, rolled).mean().item() == pytest.approx(THEIRS["rollout"]["direction"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crepa", {}),
        ("crepa_far", {"distance": 2, "tau": 3.0}),
        ("crepa_all", {"distance": 2, "neighbours": "all"}),
    ],
    ids=str,
)
def test_crepa(model, name, options):
    options = CrepaOptions(weight=0.5, block=case.BLOCK, **options)
    model.look = Look(options.block)
    projection = Projection(case.DIM, case.FEATURES, seed=0)
    with torch.no_grad():
        for parameter, value in zip(projection.parameters(), case.head(), strict=True):
            parameter.copy_(value)
    forwards, batch = forwards_of(model), noisy()
    forwards.alignment = Crepa(projection, model.look, options)
    features = case.features()
    batch = replace(batch, features=features[:, chosen_frames(features.shape[1], 3)])
    ((flow, crepa),) = FlowMatching(LossOptions(), alignment=0.5).terms(batch, forwards)
    assert crepa.name == "crepa"
    assert crepa.weight * crepa.losses.mean().item() == pytest.approx(THEIRS[name]["term"], rel=1e-5)
    of_head = dict(
        zip(("head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"), projection.parameters(), strict=True)
    )
    check(THEIRS[name], model, flow.losses.mean() + crepa.weight * crepa.losses.mean(), of_head)
