import random
import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from scipy import ndimage
from wan_train.tools.nano.world import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    DIVE,
    HOP,
    MOTIONS,
    NEW_MOTIONS,
    NEW_SHAPES,
    NEW_TEXTURES,
    ORBIT,
    SHADE,
    SHAPES,
    SIZES,
    SWING,
    TEXTURES,
    TRAVEL,
    Scene,
    caption,
    draw,
    random_scene,
    scenes,
)

# What a caption says where it names a word; any of these.
SAYS = {
    "small": ("small", "little"),
    "large": ("large", "big"),
    1: ("a", "one"),
    2: ("two", "a pair of"),
    "still": ("still", "at rest", "not moving"),
    "left": ("left",),
    "right": ("right",),
    "up": ("moving up", "upwards", "rising"),
    "down": ("moving down", "downwards", "sinking"),
    "orbit": ("orbiting", "in orbit"),
    "bounce": ("bouncing", "hopping"),
    "swing": ("swinging",),
    "dive": ("diving",),
    "zoom in": ("zooms in", "zooming in"),
    "zoom out": ("zooms out", "zooming out"),
    "pan left": ("pan to the left", "leftward pan"),
    "pan right": ("pan to the right", "rightward pan"),
}
MOVES = [phrase for word in (*MOTIONS, *NEW_MOTIONS, *CAMERAS[1:]) for phrase in SAYS[word]]
ALL = {
    "shape": (*SHAPES, *NEW_SHAPES),
    "colour": tuple(COLOURS),
    "texture": (*TEXTURES, *NEW_TEXTURES),
    "size": tuple(SIZES),
    "motion": (*MOTIONS, *NEW_MOTIONS),
}


def words(scene):
    return (scene.shape, scene.colour, scene.texture, scene.size, scene.count, scene.background, scene.motion,
            scene.camera)  # fmt: skip


def coloured(frames):
    """Mask [F, H, W] of what is not grey."""
    return np.ptp(frames.astype(int), axis=-1) > 40


def track(scene, num_frames=17):
    """Centre of what is coloured in each frame, [F, 2], x and y in units of the picture's side."""
    masks = coloured(draw(scene, num_frames))
    return (np.array([ndimage.center_of_mass(mask)[::-1] for mask in masks]) + 0.5) / masks.shape[-1]


def says(text, word):
    """Whether a text names a word, a shape also in the plural."""
    return any(re.search(rf"\b{phrase}(e?s)?\b", text) for phrase in SAYS.get(word, (word,)))


# Scenes -----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_scenes_captions_and_pixels():
    first, again, other = (list(islice(scenes(seed), 5)) for seed in (1, 1, 2))
    assert first == again != other
    for scene in first:
        assert caption(scene, random.Random(3)) == caption(scene, random.Random(3))
        assert np.array_equal(draw(scene), draw(scene))
        assert not np.array_equal(draw(scene), draw(replace(scene, jitter=scene.jitter + 1)))


def test_train_and_test_share_no_combination_of_words():
    train, test = ({words(scene) for scene in islice(scenes(7, split), 3000)} for split in ("train", "test"))
    assert min(len(train), len(test)) > 400
    assert not train & test
    either = [scene.is_test for scene in islice(scenes(7), 3000)]
    assert 0.1 < np.mean(either) < 0.15
    scene = random_scene(random.Random(0))
    assert {replace(scene, jitter=i).is_test for i in range(50)} == {scene.is_test}


def test_the_base_meets_all_its_words_and_none_of_the_new_ones():
    met = [set(values) for values in zip(*map(words, islice(scenes(0), 3000)), strict=True)]
    assert met == [set(SHAPES), set(COLOURS), set(TEXTURES), set(SIZES), {1, 2}, set(BACKGROUNDS), set(MOTIONS),
                   set(CAMERAS)]  # fmt: skip


def test_one_scene_in_ten_has_a_moving_camera_and_still_objects_on_tiles():
    moving = [scene for scene in islice(scenes(4), 3000) if scene.camera != "fixed"]
    assert 0.08 < len(moving) / 3000 < 0.12
    assert {(scene.background, scene.motion) for scene in moving} == {("tiled", "still")}


# Words ------------------------------------------------------------------------------------------------------------


def test_a_caption_names_everything():
    rng = random.Random(0)
    for scene in islice(scenes(5), 500):
        scene = replace(scene, shape=rng.choice(ALL["shape"]), texture=rng.choice(ALL["texture"]))
        if scene.camera == "fixed":
            scene = replace(scene, motion=rng.choice(ALL["motion"]))
        text = caption(scene, rng)
        silent = {"fixed", "plain"}  # said by saying nothing, or left out now and then
        assert [word for word in words(scene) if word not in silent and not says(text, word)] == [], text
        for attribute, vocabulary in ALL.items():
            if attribute == "motion" and scene.camera != "fixed":
                continue  # a pan goes left or right, too
            assert {word for word in vocabulary if says(text, word)} <= {getattr(scene, attribute)}, text
        assert says(text, 2) == (scene.count == 2), text
        assert "  " not in text
        assert " ," not in text
        assert ",," not in text


def test_a_caption_has_many_phrasings():
    scene = Scene(shape="diamond", colour="blue", texture="striped", count=2, motion="left", background="tiled")
    assert len({caption(scene, random.Random(i)) for i in range(300)}) > 80


def test_a_trigger_stands_for_what_it_replaces():
    rng = random.Random(1)
    scene = Scene(shape="star", colour="red", texture="cored", count=2, motion="swing")
    for attribute, gone in {"shape": "star", "motion": "swing", "texture": "cored"}.items():
        for _ in range(50):
            text = caption(scene, rng, {attribute: "[trigger]"})
            assert text.count("[trigger]") == 1
            assert "[trigger]s" not in text
            assert gone not in text


def test_the_caption_of_a_picture_tells_no_motion():
    rng = random.Random(2)
    for scene in islice(scenes(6), 300):
        text = caption(scene, rng, still=True)
        assert not [phrase for phrase in MOVES if phrase in text], text
        assert not text.endswith((",", ":", " "))
        kept = (scene.shape, scene.colour, scene.size, scene.count, scene.background)
        assert all(says(text, word) for word in kept), text


# Pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("motion", "dx", "dy"),
    [("still", 0, 0), ("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1), ("dive", 1, 1)],
)
def test_straight_motions_go_their_way_evenly(motion, dx, dy):
    way = DIVE if motion == "dive" else TRAVEL
    for count in (1, 2):
        places = track(Scene(motion=motion, count=count, size="small", jitter=3))
        straight = places[0] + np.linspace(0, 1, 17)[:, None] * way * np.array([dx, dy])
        assert np.abs(places - straight).max() < 0.01


def test_orbit_goes_once_around_the_middle():
    x, y = (track(Scene(motion="orbit", jitter=5)) - 0.5).T
    assert np.allclose(np.hypot(x, y), ORBIT, atol=0.01)
    angles = np.unwrap(np.arctan2(y, x))
    assert np.allclose(np.diff(angles), 2 * np.pi / 16, atol=0.05)


def test_bounce_hops_twice_from_the_floor():
    x, y = track(Scene(motion="bounce", jitter=6)).T
    assert np.ptp(x) < 0.01
    assert np.allclose(y[[0, 8, 16]], y.max(), atol=0.01)  # on the floor
    assert np.allclose(y[[4, 12]], y.max() - HOP, atol=0.01)


def test_swing_goes_to_one_side_then_to_the_other():
    x, y = track(Scene(motion="swing", size="small", jitter=7)).T
    assert np.ptp(y) < 0.01
    assert np.allclose(x - x[0], SWING * np.sin(np.linspace(0, 2 * np.pi, 17)), atol=0.01)


@pytest.mark.parametrize(("camera", "way"), [("pan left", TRAVEL), ("pan right", -TRAVEL)])
def test_a_pan_moves_objects_and_ground_the_other_way(camera, way):
    scene = Scene(camera=camera, background="tiled", size="small", jitter=8)
    x, y = track(scene).T
    assert np.allclose(x - x[0], np.linspace(0, way, 17), atol=0.01)
    assert np.ptp(y) < 0.01
    top = draw(scene)[:, 2, :, 0].astype(int)  # a row of the ground
    step = round(way * 64 / 4)  # in a quarter of the clip
    still = [np.abs(np.roll(top[0], move)[16:48] - top[4][16:48]).mean() for move in (step, 0, -step)]
    assert still[0] < 0.2 * min(still[1:])


@pytest.mark.parametrize(("camera", "growth"), [("zoom in", 1.18 / 0.72), ("zoom out", 0.72 / 1.18)])
def test_a_zoom_scales_objects_and_their_distance(camera, growth):
    scene = Scene(camera=camera, background="tiled", size="small", count=2, jitter=9)
    masks = coloured(draw(scene))[[0, -1]]
    areas = masks.sum((1, 2))
    assert areas[1] / areas[0] == pytest.approx(growth**2, rel=0.1)
    centres = [ndimage.center_of_mass(mask, *ndimage.label(mask)[:1], [1, 2]) for mask in masks]
    distances = [np.linalg.norm(np.subtract(*pair)) for pair in centres]
    assert distances[1] / distances[0] == pytest.approx(growth, rel=0.05)


@pytest.mark.parametrize("motion", [*MOTIONS, *NEW_MOTIONS])
def test_objects_stay_in_the_picture(motion):
    """At least nine tenths of the objects are to be seen in every frame of a fixed camera, by their coloured area."""
    for shape in (*SHAPES, *NEW_SHAPES):
        for jitter, count in enumerate((1, 2)):
            areas = coloured(draw(Scene(shape=shape, motion=motion, count=count, jitter=jitter), 5)).sum((1, 2))
            assert areas.min() > 0.9 * np.median(areas)


@pytest.mark.parametrize("shape", [*SHAPES, *NEW_SHAPES])
def test_two_objects_are_apart(shape):
    for motion in (*MOTIONS, *NEW_MOTIONS):
        for mask in coloured(draw(Scene(shape=shape, motion=motion, count=2, jitter=1), 5)):
            assert (np.bincount(ndimage.label(mask)[0].ravel())[1:] > 50).sum() == 2


@pytest.mark.parametrize("texture", [*TEXTURES, *NEW_TEXTURES])
def test_textures_darken_a_part_of_the_object(texture):
    plain, frame = (draw(Scene(texture=t, jitter=2), 1).astype(float) for t in ("plain", texture))
    inside = ndimage.binary_erosion(coloured(plain)[0], iterations=2)
    share = frame[0, ..., 0][inside] / plain[0, ..., 0][inside]
    dark, bright = np.isclose(share, SHADE, atol=0.02), np.isclose(share, 1)
    assert np.mean(dark | bright) > 0.7  # the rest lies on the border of the two
    assert bright.any()
    assert dark.any() == (texture != "plain")


def test_shapes_textures_and_colours_differ_in_pixels():
    pictures = [
        draw(replace(Scene(jitter=4), **{attribute: word}), 1)[0].astype(int)
        for attribute, vocabulary in {
            "shape": (*SHAPES, *NEW_SHAPES),
            "texture": (*TEXTURES[1:], *NEW_TEXTURES),
            "colour": [*COLOURS][1:],
            "background": BACKGROUNDS[1:],
        }.items()
        for word in vocabulary
    ]
    for i, a in enumerate(pictures):
        assert all((np.abs(a - b).max(-1) > 20).sum() > 60 for b in pictures[:i])


def test_a_picture_and_another_size_show_the_same_scene():
    scene = Scene(shape="heart", texture="quartered", count=2, jitter=11)
    picture, large = draw(scene, 1), draw(scene, 1, size=96)
    assert picture.shape == (1, 64, 64, 3)
    assert large.shape == (1, 96, 96, 3)
    assert picture.dtype == large.dtype == np.uint8
    small = large[0].reshape(32, 3, 32, 3, 3).mean((1, 3)) - picture[0].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(small).mean() < 2


def test_a_single_picture_of_a_motion_is_of_any_time():
    places = [track(Scene(motion="left", jitter=i), 1)[0, 0] for i in range(40)]
    assert np.ptp(places) > 0.35
