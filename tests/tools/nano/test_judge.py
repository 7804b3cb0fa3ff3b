import random
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage
from wan_train.tools.nano.judge import SHAPES, TEXTURES, Verdict, judge
from wan_train.tools.nano.world import COLOURS, MOTIONS, NEW_MOTIONS, Scene, draw, random_scene

NOTHING = Verdict("nothing", "nothing", "nothing", "nothing", "nothing", 0)
NEEDED = {"shape": 0.99, "colour": 0.99, "motion": 0.99, "texture": 0.97, "size": 0.97, "count": 0.99, "camera": 1.0}


def any_scene(rng):
    """A scene of the base's world and of what is new to it alike."""
    scene = replace(random_scene(rng), shape=rng.choice(SHAPES), texture=rng.choice(TEXTURES))
    return replace(scene, motion=rng.choice((*MOTIONS, *NEW_MOTIONS))) if scene.camera == "fixed" else scene


def truth(scene):
    return Verdict(scene.shape, scene.colour, scene.seen_motion, scene.texture, scene.size, scene.count)


def worn(frames, rng, *, noise=6.0, blur=0.7):
    """Frames as a small autoencoder gives them back: blur in pixels, noise in grey levels."""
    soft = ndimage.gaussian_filter(frames.astype(np.float32), (0, blur, blur, 0), truncate=3)
    soft += noise * rng.standard_normal(soft.shape, dtype=np.float32)
    return soft.clip(0, 255).astype(np.uint8)


def shares(clips):
    """The share of clips in which the judge is right, for each attribute; clips are pairs of scene and frames."""
    right = Counter()
    for scene, frames in clips:
        seen, is_there = asdict(judge(frames)), asdict(truth(scene))
        right.update({attribute: seen[attribute] == is_there[attribute] for attribute in seen})
    return {attribute: number / len(clips) for attribute, number in right.items()}


def wanting(clips):
    return {attribute: share for attribute, share in shares(clips).items() if share < NEEDED[attribute]}


@pytest.fixture(scope="module")
def clips():
    """400 pairs of scene and frames over the whole vocabulary; 17 frames, in the latter half 9."""
    rng = random.Random(0)
    drawn = [any_scene(rng) for _ in range(400)]
    return [(scene, draw(scene, 17 if i < 200 else 9)) for i, scene in enumerate(drawn)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# What is there is seen --------------------------------------------------------------------------------------------


def test_every_attribute_is_read(clips):
    assert wanting(clips[:60]) == {}


def test_every_attribute_is_read_through_blur_and_noise(clips, rng):
    assert wanting([(scene, worn(frames, rng)) for scene, frames in clips]) == {}


def test_slightly_wrong_colours_are_forgiven(clips, rng):
    for scene, frames in clips[:20]:
        objects = np.ptp(frames.astype(int), axis=-1, keepdims=True) > 30
        wrong = np.clip(frames + objects * rng.integers(-20, 21, 3), 0, 255).astype(np.uint8)
        assert judge(wrong).colour == scene.colour


def test_larger_pictures_are_read(clips):
    assert wanting([(scene, draw(scene, 9, size=96)) for scene, _ in clips[:20]]) == {}


def test_a_picture_shows_all_but_motion(clips):
    single = [scene for scene, _ in clips[:40] if scene.motion != "dive"]  # two that dive are cut by the sides
    verdicts = [(replace(judge(draw(scene, 1)), size="large"), scene) for scene in single]
    right = [seen == replace(truth(scene), motion="nothing", size="large") for seen, scene in verdicts]
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize(
    ("motion", "reverse"),
    [("left", "right"), ("up", "down"), ("orbit", "orbit"), ("bounce", "bounce"), ("swing", "swing"),
     ("dive", "nothing")],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 2])
def test_a_motion_backwards(motion, reverse, count):
    frames = draw(Scene(shape="moon", motion=motion, count=count, jitter=1))
    assert (judge(frames).motion, judge(frames[::-1]).motion) == (motion, reverse)


def test_a_mirrored_clip_is_mirrored():
    frames = draw(Scene(shape="circle", motion="left", texture="striped", jitter=1))
    assert judge(frames[:, :, ::-1]).motion == "right"
    turned = judge(frames.transpose(0, 2, 1, 3))
    assert (turned.motion, turned.texture) == ("up", "barred")


@pytest.mark.parametrize("shape", SHAPES)
def test_close_objects_are_two(shape, rng):
    for jitter in range(2):
        scene = Scene(shape=shape, texture="cored", count=2, background="grey", motion="up", jitter=jitter)
        seen = judge(worn(draw(scene), rng, noise=8, blur=0.9))
        assert (seen.count, seen.motion) == (2, "up")


@pytest.mark.parametrize("camera", ["zoom in", "zoom out"])
def test_what_a_zoom_drives_apart_stands_still(camera):
    for jitter in range(4):
        frames = draw(Scene(count=2, camera=camera, background="tiled", size="small", jitter=jitter))
        assert judge(frames).motion == "still"


def test_frames_in_which_an_object_is_cut_say_nothing_of_its_shape():
    for shape in SHAPES:
        frames = draw(Scene(shape=shape, motion="right", jitter=2))[:, 5:59, 10:]  # comes in from the side
        assert frames[0, :, 0].max() > 100
        seen = judge(frames)
        assert (seen.shape, seen.motion) == (shape, "right")


def test_two_bad_frames_are_forgiven(clips, rng):
    for _, frames in clips[:10]:
        spoiled = frames.copy()
        spoiled[[5, 11]] = rng.integers(0, 256, (2, 64, 64, 3))
        assert judge(spoiled) == judge(frames)


# What is not there is not seen ------------------------------------------------------------------------------------


def gaussian_noise(rng):
    return rng.normal(128, 60, (9, 64, 64, 3)).clip(0, 255).astype(np.uint8)


def faint_noise(rng):
    return rng.normal(118, 15, (9, 64, 64, 3)).clip(0, 255).astype(np.uint8)


def uniform_noise(rng):
    return rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


def grey(rng):
    return np.full((9, 64, 64, 3), rng.integers(256), dtype=np.uint8)


def empty_ground(rng):
    """Tiles without an object, from the first row and the first column of a scene, which no object reaches."""
    frame = draw(Scene(background="tiled", size="small", jitter=int(rng.integers(2**32))), 1)[0, :, :, 0].astype(float)
    top, side = frame[0] - 82, frame[:, 0] - 82
    ground = 82 + np.outer(side, top) * np.sign(frame[0, 0] - 82) / 22
    return worn(np.repeat(ground[None, :, :, None].repeat(3, -1), 9, 0), rng, blur=0)


def coloured_blobs(rng):
    """Soft blobs of random colour and extent that stand still or change."""
    extent, strength, lasting = rng.uniform(3, 12), rng.uniform(10, 60), rng.random() < 0.5
    noise = rng.standard_normal((1 if lasting else 9, 64, 64, 3), dtype=np.float32)
    blobs = ndimage.gaussian_filter(noise, (0 if lasting else 2, extent, extent, 0), truncate=2)
    frames = (128 + strength * blobs / blobs.std()).clip(0, 255).astype(np.uint8)
    return np.repeat(frames, 9 // len(frames), 0)


@pytest.mark.parametrize(
    "made", [gaussian_noise, faint_noise, uniform_noise, grey, empty_ground, coloured_blobs], ids=lambda f: f.__name__
)
def test_junk_is_nothing(made, rng):
    assert sum(judge(made(rng)) == NOTHING for _ in range(100)) >= 99


def rectangle(height, width, colour):
    """A rectangle of height x width pixels that crosses a black picture from left to right."""
    frames = np.full((17, 64, 64, 3), 16, dtype=np.uint8)
    for i, frame in enumerate(frames):
        x, y = 32 + round(26 * (i / 16 - 0.5)) - width // 2, 32 - height // 2
        frame[y : y + height, x : x + width] = colour
    return frames


def test_an_unknown_shape_has_colour_and_motion():
    seen = judge(rectangle(16, 26, COLOURS["blue"]))
    assert (seen.shape, seen.colour, seen.motion, seen.count) == ("nothing", "blue", "right", 1)
    assert judge(rectangle(23, 23, COLOURS["blue"])).shape == "square"


def test_a_line_is_no_object():
    assert judge(rectangle(60, 7, COLOURS["blue"])) == NOTHING


def test_a_hint_of_colour_is_no_object():
    assert judge(rectangle(23, 23, (60, 60, 100))) == NOTHING


def other(scene, attribute, vocabulary, rng):
    word = rng.choice([word for word in vocabulary if word != getattr(scene, attribute)])
    return replace(scene, **{attribute: word})


@pytest.mark.parametrize(
    ("attribute", "vocabulary", "draws"),
    [("shape", SHAPES, 100), ("texture", TEXTURES, 25), ("colour", tuple(COLOURS), 25)],
)
def test_what_changes_half_way_is_nothing(clips, attribute, vocabulary, draws):
    rng, told = random.Random(1), 0
    for scene, frames in clips[:draws]:
        changed = draw(other(scene, attribute, vocabulary, rng), 9)
        told += getattr(judge(np.concatenate([frames[:9:2], changed[5:]])), attribute) != "nothing"
    assert told <= draws // 100


def test_objects_that_vanish_or_appear_are_nothing(clips):
    for _, frames in clips[:10]:
        half = frames.copy()
        half[9:] = 118
        assert judge(half) == judge(half[::-1]) == NOTHING


def test_two_different_shapes_are_no_shape():
    sides = [draw(Scene(shape=shape, count=2, jitter=1)) for shape in ("star", "circle")]
    seen = judge(np.concatenate([sides[0][:, :, :32], sides[1][:, :, 32:]], axis=2))
    assert (seen.shape, seen.colour, seen.count) == ("nothing", "red", 2)


def test_a_colour_that_the_world_does_not_know_is_nothing():
    frames = draw(Scene(shape="circle", colour="red", background="black"))
    orange = frames.copy()
    orange[..., 1] = np.maximum(frames[..., 1], frames[..., 0] * 0.58)
    assert judge(orange).colour == "nothing"
    assert judge(orange).shape == "circle"


def test_shuffled_frames_have_no_motion(clips, rng):
    moving = [frames for scene, frames in clips if scene.seen_motion != "still"][:100]
    seen = Counter(judge(rng.permutation(frames)).motion for frames in moving)
    assert seen["nothing"] >= 99


def test_a_frozen_clip_stands_still(clips):
    frozen = [(scene, np.repeat(frames[8:9], 17, 0)) for scene, frames in clips[:50]]
    right = [judge(frames).motion == "still" for scene, frames in frozen if (scene.motion, scene.count) != ("dive", 2)]
    assert np.mean(right) >= 0.99


@pytest.mark.parametrize("num_frames", [3, 4])
def test_few_frames_tell_no_motion(num_frames):
    seen = judge(draw(Scene(motion="left"), num_frames))
    assert (seen.motion, seen.shape) == ("nothing", "circle")
