"""Cameras are seen by the ground; the new ones, and palettes, are there in what the shipped VAE gives back."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from wan_train.tools.nano.concepts import CONCEPTS, prompts
from wan_train.tools.nano.exam import learnt, shows
from wan_train.tools.nano.family import Files
from wan_train.tools.nano.ground import camera_of, see
from wan_train.tools.nano.judge import judge
from wan_train.tools.nano.vae import load_vae, to_frames, to_video
from wan_train.tools.nano.world import BACKGROUNDS, Scene, draw, scenes

NEW = ("tilt", "duotone")


@pytest.fixture(scope="module")
def vae():
    return load_vae(Files().vae)


@pytest.mark.parametrize("camera", ["pan left", "pan right", "tilt up", "fixed"])
def test_a_camera_is_told_by_the_ground(camera):
    for jitter in range(4):
        frames = draw(Scene(camera=camera, background="tiled", shape="square", colour="cyan", jitter=jitter))
        assert camera_of(frames) == camera
        assert camera_of(frames[::2]) == camera
    if camera == "tilt up":
        assert camera_of(frames[::-1]) == "nothing"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_object_that_moves_is_no_camera(background):
    for motion in ("left", "down", "orbit"):
        assert camera_of(draw(Scene(background=background, motion=motion, jitter=3))) == "fixed"


def test_a_zoom_is_no_pan():
    for camera in ("zoom in", "zoom out"):
        assert camera_of(draw(Scene(camera=camera, background="tiled", jitter=1))) in ("fixed", "nothing")


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", NEW)
def test_the_shipped_vae_shows_what_is_new(vae, name):
    concept = CONCEPTS[name]
    asked = [scene for scene, _ in prompts(concept, 8, 1)]
    video = to_video(torch.from_numpy(np.stack([draw(scene) for scene in asked])))
    clips = to_frames(vae.decode(vae.encode(video))).numpy()
    verdicts = [see(clip) for clip in clips]
    assert learnt(verdicts, concept, asked) == 1.0
    assert [verdict.motion for verdict in verdicts] == [scene.seen_motion for scene in asked]


@pytest.mark.parametrize("name", NEW)
def test_what_the_base_knows_shows_nothing_new(name):
    for scene in islice((scene for scene in scenes(3) if scene.camera == "fixed"), 12):
        assert not shows(see(draw(scene)), CONCEPTS[name], scene)


def test_a_palette_is_seen_where_it_changes_the_colour():
    concept = CONCEPTS["duotone"]
    for colour, there in {"yellow": "red", "cyan": "blue", "red": "red"}.items():
        scene = Scene(colour=colour)
        verdict = judge(draw(concept.on(scene)))
        assert verdict.colour == there
        assert shows(verdict, concept, scene) == (colour != "red")
        assert not shows(replace(verdict, colour="green"), concept, scene)
