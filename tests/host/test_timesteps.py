"""Timestep Density and Timestep Curve in a host: a picture, and the text of a curve that Train LoRA Stage takes."""

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.flow.density import density_of, draw
from wan_train.core.recipe.recipe import widgets_of
from wan_train.core.settings.curve import read_curve
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.tests.host.graphs import node
from wan_train.tests.host.runs import succeeded

SIZE = {"windows": "both experts", "width": 832, "height": 480, "num_frames": 81}


@pytest.fixture(scope="module")
def nodes(comfy):
    from wan_train.nodes import timestep_nodes

    return timestep_nodes


def defaults(nodes):
    schema = nodes.WanTimestepDensity.define_schema()
    return {item.id: item.default for item in schema.inputs if hasattr(item, "default")} | SIZE


def test_the_picture_is_that_of_the_settings(nodes):
    settings = defaults(nodes) | {"timestep_sampling": "shifted_uniform", "timestep_shift": 5.0}
    image, summary = nodes.WanTimestepDensity.execute(**settings).result
    expected = [
        density_of(name, TimestepOptions(sampling="shifted_uniform", shift=5.0, **window), LossOptions())
        for name, window in (("high noise", {"sigma_min": 0.875}), ("low noise", {"sigma_max": 0.875}))
    ]
    assert summary == "\n".join(density.sentence for density in expected)
    assert image.shape == (1, 540, 960, 3)
    pixels = torch.frombuffer(bytearray(draw(expected).tobytes()), dtype=torch.uint8).view(540, 960, 3)
    assert torch.equal((image[0] * 255).round().byte(), pixels)


def test_every_setting_of_the_levels_changes_the_picture(nodes):
    changes = {
        "timestep_sampling": ({}, "sigmoid"),
        "timestep_shift": ({"timestep_sampling": "shift"}, 9.0),
        "sigmoid_scale": ({"timestep_sampling": "sigmoid"}, 0.4),
        "boundary": ({}, 0.5),
        "timestep_bias": ({}, "favor_low_noise"),
        "timestep_window": ({"timestep_sampling": "sigmoid"}, "squeezed"),
        "timestep_curve": ({"timestep_sampling": "curve"}, "0:0, 1:1"),
        "logsnr_mean": ({"timestep_sampling": "logsnr"}, -6.0),
        "logsnr_std": ({"timestep_sampling": "logsnr"}, 3.0),
        "timestep_beta_a": ({"timestep_sampling": "beta"}, 5.0),
        "timestep_beta_b": ({"timestep_sampling": "beta"}, 5.0),
        "timestep_shift_cap": ({"timestep_sampling": "auto_shift"}, 2.0),
        "timestep_mode_scale": ({"timestep_sampling": "mode"}, -0.9),
        "loss_weighting": ({}, "bell"),
        "width": ({"timestep_sampling": "flux_shift"}, 2560),
        "height": ({"timestep_sampling": "flux_shift"}, 2560),
        "num_frames": ({"timestep_sampling": "auto_shift", "timestep_shift_cap": 90.0}, 5),
        "windows": ({}, "single model"),
    }
    schema = nodes.WanTimestepDensity.define_schema()
    assert {item.id for item in schema.inputs} == changes.keys() | {"latents"}
    assert {item.id for item in schema.inputs} - SIZE.keys() - {"latents"} < {
        w.name for _, w in widgets_of("TrainLoRAStage")
    }
    for name, (beside, value) in changes.items():
        before = defaults(nodes) | beside
        images = [nodes.WanTimestepDensity.execute(**found).result[0] for found in (before, before | {name: value})]
        assert not torch.equal(*images), name


def test_a_wrong_value_is_refused_by_its_name(nodes):
    for name, value, message in (
        ("timestep_sampling", "nonsense", "timestep_sampling is 'nonsense': choose one of uniform"),
        ("timestep_curve", "0:x", "timestep_curve has '0:x'"),
        ("width", 3.5, "width must be a whole number"),
        ("latents", "x", "latents must be connected to Cache Latents"),
    ):
        with pytest.raises(ConfigError, match=message):
            nodes.WanTimestepDensity.execute(**defaults(nodes) | {name: value})


def test_the_hosts_curve_becomes_text(nodes):
    points = [[0.0, 0.25], [0.5, 1.0], [1.0, 0.0]]
    (text,) = nodes.WanTimestepCurve.execute({"points": points, "interpolation": "linear"}).result
    found = dict(read_curve(text))
    assert len(found) == 33
    assert found[0.0] == 0.25
    assert found[0.25] == 0.625
    assert found[0.75] == 0.5
    assert found[1.0] == 0.0
    from comfy_api.input import CurveInput

    (smooth,) = nodes.WanTimestepCurve.execute(
        CurveInput.from_raw(points)
    ).result  # as the host's Curve Editor gives it
    assert smooth != text


def test_what_is_no_curve_is_refused(nodes):
    for drawn in ("x", None, {"points": []}, {"points": [[0, 1], [1]]}, [[0.0, float("nan")], [1.0, 1.0]], 5):
        with pytest.raises(ConfigError, match="drawn must be a curve of 2 to 256 points"):
            nodes.WanTimestepCurve.execute(drawn)
    with pytest.raises(ConfigError, match="0 everywhere"):
        nodes.WanTimestepCurve.execute([[0.0, 0.0], [1.0, 0.0]])


def test_both_run_in_a_graph(host):
    curve = {"points": [[0.0, 0.2], [0.5, 1.0], [1.0, 0.2]], "interpolation": "monotone_cubic"}
    levels = {"timestep_sampling": "curve", "timestep_shift": 3.0, "sigmoid_scale": 1.0, "boundary": 0.0}
    prompt = {
        "curve": node("WanTimestepCurve", drawn=curve),
        "density": node("WanTimestepDensity", **SIZE, **levels, timestep_curve=["curve", 0]),
        "words": node("PreviewAny", source=["density", 1]),
        "save": node("PreviewImage", images=["density", 0]),
    }
    entry = host.run(prompt)
    assert succeeded(entry)
    assert len(entry["outputs"]["save"]["images"]) == 1
    assert entry["outputs"]["words"]["text"][0].startswith(
        "high noise, timesteps 875 to 1000: half of all draws from 8"
    )
