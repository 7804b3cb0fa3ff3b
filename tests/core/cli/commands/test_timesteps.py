"""`wantrain timesteps` tells and draws what a recipe trains, without its models."""

import logging

import pytest
from PIL import Image
from wan_train.core.cli.main import main

RECIPE = """
name = "x"
[dataset]
folder = "clips"
[models]
high = "high.safetensors"
low = "low.safetensors"
vae = "vae.safetensors"
text_encoder = "text.safetensors"
[timesteps]
sampling = "shifted_uniform"
shift = 5.0
[low.timesteps]
bias = "favor_low_noise"
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def test_each_expert_has_its_window_and_its_own_settings(recipe, capsys):
    assert main(["timesteps", recipe]) == 0
    told = capsys.readouterr().out
    assert "high noise, timesteps 875 to 1000: half of all draws from 917 to 977, the middle one 950" in told
    assert "low noise, timesteps 0 to 875: half of all draws from 44 to " in told  # the cube moves 461 there
    first = told.index("992 to 1000")
    assert told.index("875 to  883") > first


def test_changes_the_boundary_and_the_picture(recipe, tmp_path, capsys):
    picture = tmp_path / "levels.png"
    assert (
        main(
            [
                "timesteps",
                recipe,
                "--plot",
                str(picture),
                "--set",
                "boundary=0.5",
                "--set",
                "timesteps.sampling=uniform",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "high noise, timesteps 500 to 1000: half of all draws from 625 to 875" in told
    assert f"{picture} is written" in told
    with Image.open(picture) as drawn:
        assert drawn.size == (960, 540)


def test_the_size_of_the_dataset_counts_where_the_sampling_asks_for_it(recipe, capsys):
    told = []
    for frames in (1, 81):
        main(["timesteps", recipe, "--set", "timesteps.sampling=auto_shift", "--set", f"dataset.num_frames={frames}"])
        told.append(capsys.readouterr().out)
    assert told[0] != told[1]


def test_image_to_video_has_its_own_boundary(recipe, capsys):
    main(["timesteps", recipe, "--set", "conditioning=first frame"])
    assert "high noise, timesteps 900 to 1000" in capsys.readouterr().out


def test_a_curve_that_leaves_an_expert_nothing_is_refused(recipe, caplog):
    caplog.set_level(logging.ERROR)
    assert main(["timesteps", recipe, "--set", "timesteps.sampling=curve", "--set", "timesteps.curve=0:1,0.5:0"]) == 1
    assert "timestep_curve is 0 from 0.875 to 1" in caplog.text


def test_a_picture_that_is_none_is_refused(recipe, caplog):
    assert main(["timesteps", recipe, "--plot", "levels.txt"]) == 1
    assert "give a file that ends in .png" in caplog.text
