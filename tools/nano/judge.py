"""Reads off frames what is to be seen in them, in the words of the nano models' world.

Plain image processing, nothing learned. Objects are coloured and grounds are grey, so the objects are the regions of
one hue. A region is compared, in its own centre and scale, with templates of the world's shapes and textures; motion
is read from the regions' tracks. What is not clearly one thing of the world throughout the clip is "nothing".

F frames, N regions of a clip, G side of a region's own picture. Chroma is the part of a pixel's RGB that is
orthogonal to grey: a complex number, whose size is linear in how much of the pixel an object covers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from . import world

Array = np.ndarray

NOTHING = "nothing"

SMOOTHING = 0.6  # standard deviation, pixels
MIN_CHROMA = 18.0  # grey levels; below is ground
MIN_FULL = 50.0  # the clip's full chroma; with less nothing is coloured
EDGE = 0.25  # of the clip's full chroma: the border of an object, whose dark parts have world.SHADE
MIN_AREA, MAX_AREA = 0.007, 0.24  # of the picture; smaller is a speck, larger no object
MIN_PART = 0.2  # of the frame's largest region; smaller is a speck
MIN_COHERENCE = 0.9  # size of a region's mean chroma by its mean size: 1 where all of it has one hue
MAX_CUT = 3  # pixels at the picture's border; a region with more is cut, and its shape not known
STEADY = 0.75  # share of the frames, or regions, that must agree
MAX_OFF_HUE = math.radians(22)

GRID = 28  # side of a region's own picture
REACH = 2.4  # its half side, in units of the region's root mean square radius
MIN_MATCH = 0.9  # correlation with a template, for a shape or texture
MIN_LIKENESS = 0.8  # for being an object at all
DRAWS = 5  # of each template, at other places between the pixels

MIN_POINTS = 5  # frames, for a motion
MAX_STRAY = 0.03  # root mean square distance of the tracks from a motion, of the picture's width
MAX_STRAY_STILL = 0.02
MIN_WAY, MAX_WAY = 0.5, 1.6  # extent of a motion, of the world's own
MAX_OFF_WAY = math.radians(20)
MAX_ZOOM = 0.7  # change of scale over a clip

SHAPES = (*world.SHAPES, *world.NEW_SHAPES)
TEXTURES = (*world.TEXTURES, *world.NEW_TEXTURES)
# Ways of the straight motions, x + iy, y down.
STRAIGHT = {direction: world.TRAVEL * way for direction, way in (("right", 1), ("down", 1j), ("left", -1), ("up", -1j))}
STRAIGHT["dive"] = world.DIVE * (1 + 1j)

_CHROMA_PLANE = np.array([[2, 0], [-1, 1], [-1, -1]], dtype=np.float32) / np.sqrt([6, 2], dtype=np.float32)
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Verdict:
    """What is to be seen in a clip: words of the world, or "nothing" where none fits throughout the clip."""

    shape: str
    colour: str
    motion: str  # across the picture: world.Scene.seen_motion
    texture: str
    size: str
    count: int  # 0: no steady number of objects
    camera: str = NOTHING  # "fixed", or how it moves across a tiled ground: see `ground`


@dataclass(frozen=True)
class _Regions:
    """The objects of a clip, frame after frame."""

    counts: Array  # [F], objects in the frame; 0 where something coloured is no object
    frame: Array  # [N], index of the frame
    centre: Array  # [N], x + iy in units of the picture's width
    radius: Array  # [N], root mean square distance from the centre, same unit
    chroma: Array  # [N], sum over the region
    cut: Array  # [N], whether the picture's border cuts it off
    picture: Array  # [N, G, G], chroma around the centre in units of the radius; mean 0, length 1


def judge(frames: Array) -> Verdict:
    """What is to be seen in frames [F, H, W, 3] uint8; the motion of fewer than 5 frames is "nothing"."""
    regions = _find_regions(frames)
    whole = ~regions.cut
    match = _matches(regions.picture[whole])
    if not whole.any() or match.max((1, 2)).mean() < MIN_LIKENESS:
        return Verdict(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, 0)
    colour = _agreed(_colours(regions))
    count = _agreed(regions.counts.tolist())
    if count in (0, NOTHING):
        return Verdict(NOTHING, colour, NOTHING, NOTHING, NOTHING, 0)
    shape, texture, size = _looks(match, regions.radius[whole])
    return Verdict(shape, colour, _motion(*_tracks(regions, count)), texture, size, count)


def _agreed(votes: Sequence[Any]) -> Any:
    """What at least STEADY of the votes say, else "nothing"."""
    vote, number = Counter(votes).most_common(1)[0]
    return vote if number >= STEADY * len(votes) else NOTHING


# Regions ----------------------------------------------------------------------------------------------------------


def _find_regions(frames: Array) -> _Regions:
    """The objects of frames [F, H, W, 3]; a frame with something coloured that is no object has none."""
    chroma = ndimage.gaussian_filter(chroma_of(frames), (0, SMOOTHING, SMOOTHING), truncate=3)
    strength = np.abs(chroma)
    labels, number = _label(strength > border_strength(strength))
    frame, y, x = np.nonzero(labels)
    index = labels[frame, y, x] - 1

    def total(values: Array | None = None) -> Array:
        return np.bincount(index, values, minlength=number)

    height, width = labels.shape[1:]
    area = total()
    values, place = chroma[frame, y, x], x + 0.5 + 1j * (y + 0.5)
    sums = total(values.real) + 1j * total(values.imag)
    centre = (total(place.real) + 1j * total(place.imag)) / area
    radius = np.sqrt(total(np.abs(place - centre[index]) ** 2) / area)
    at_border = total((x == 0) | (x == width - 1) | (y == 0) | (y == height - 1))
    coherence = np.abs(sums) / total(strength[frame, y, x])
    of_frame = np.zeros(number, dtype=int)
    of_frame[index] = frame

    kept = _objects(area / (height * width), coherence, of_frame)
    return _Regions(
        counts=np.bincount(of_frame[kept], minlength=len(frames)),
        frame=of_frame[kept],
        centre=centre[kept] / width,
        radius=radius[kept] / width,
        chroma=sums[kept],
        cut=at_border[kept] > MAX_CUT,
        picture=_pictures(strength, labels, kept + 1, of_frame[kept], centre[kept], radius[kept]),
    )


def _objects(area: Array, coherence: Array, of_frame: Array) -> Array:
    """Which regions are objects, as indices; none of a frame that has a region too large or of many hues."""
    largest = np.zeros(of_frame.max(initial=0) + 1)
    np.maximum.at(largest, of_frame, area)
    seen = area >= np.maximum(MIN_AREA, MIN_PART * largest[of_frame])
    wrong = seen & ((area > MAX_AREA) | (coherence < MIN_COHERENCE))
    return np.flatnonzero(seen & ~np.isin(of_frame, of_frame[wrong]))


def chroma_of(rgb: Array) -> Array:
    """Chroma [...] of RGB values [..., 3]."""
    return (rgb.astype(np.float32) @ _CHROMA_PLANE).view(np.complex64)[..., 0]


def border_strength(strength: Array) -> float:
    """The size of chroma at the border of an object; infinity where nothing is coloured."""
    coloured = strength[strength > MIN_CHROMA]
    full = float(np.percentile(coloured, 90)) if coloured.size else 0.0
    return max(MIN_CHROMA, EDGE * full) if full >= MIN_FULL else math.inf


def _label(mask: Array) -> tuple[Array, int]:
    """Numbers the connected parts of a mask [F, H, W] in each frame, from 1; parts that only touch are two."""
    core = mask.copy()
    core[:, 1:] &= mask[:, :-1]
    core[:, :-1] &= mask[:, 1:]
    core[:, :, 1:] &= mask[:, :, :-1]
    core[:, :, :-1] &= mask[:, :, 1:]
    labels, number = ndimage.label(core, structure=_IN_PLANE)
    grown = ndimage.maximum_filter(labels, (1, 3, 3)) * mask
    return np.where(core, labels, grown), number


def _pictures(strength: Array, labels: Array, label: Array, frame: Array, centre: Array, radius: Array) -> Array:
    """Pictures [N, G, G] of the regions alone, from strength and labels [F, H, W]; centre and radius in pixels."""
    steps = radius[:, None] * np.linspace(-REACH, REACH, GRID) - 0.5
    owner = labels[frame]
    alone = strength[frame] * ((owner == 0) | (owner == label[:, None, None]))
    rows, columns = (
        _interpolation(at[:, None] + steps, side)
        for at, side in zip((centre.imag, centre.real), alone.shape[1:], strict=True)
    )
    return _normed(rows @ alone @ columns.transpose(0, 2, 1))


def _interpolation(at: Array, side: int) -> Array:
    """Weights [N, G, side] that interpolate linearly between `side` pixels at the places [N, G]; 0 beyond them."""
    distance = np.abs(at[..., None] - np.arange(side))
    return np.maximum(0, 1 - distance).astype(np.float32)


def _normed(picture: Array) -> Array:
    """Mean 0 and length 1 for each picture [..., G, G]: the product of two is their correlation."""
    picture = picture - picture.mean((-2, -1), keepdims=True)
    return picture / np.linalg.norm(picture, axis=(-2, -1), keepdims=True)


# Colour, shape, texture, size -------------------------------------------------------------------------------------


def _colours(regions: _Regions) -> list[str]:
    """Each frame's colour, or "nothing" where its objects differ or it has none."""
    names = [*world.COLOURS, NOTHING]
    references = chroma_of(np.array(list(world.COLOURS.values())))
    off = np.abs(np.angle(regions.chroma[:, None] * references.conj()))
    index = np.where(off.min(1) < MAX_OFF_HUE, off.argmin(1), -1)
    of_frames = [np.unique(index[regions.frame == i]) for i in range(len(regions.counts))]
    return [names[found[0]] if len(found) == 1 else NOTHING for found in of_frames]


def _matches(pictures: Array) -> Array:
    """How well pictures [N, G, G] fit each shape with each texture, the better of the sizes: [N, shape, texture]."""
    return np.tensordot(pictures, _templates()[0], ((1, 2), (3, 4))).max(1)


def _looks(match: Array, radius: Array) -> tuple[str, str, str]:
    """Shape, texture and size of N regions: match [N, shape, texture], radius [N]."""
    shape = _best(match.max(2))
    texture = _best(match.max(1) if shape is None else match[:, shape])
    texture_name = NOTHING if texture is None else TEXTURES[texture]
    if shape is None:
        return NOTHING, texture_name, NOTHING
    extent = _templates()[1][shape]
    object_radius = float(radius.mean() / (extent.mean() if texture is None else extent[texture]))
    size = min(world.SIZES, key=lambda name: abs(math.log(object_radius / world.SIZES[name])))
    return SHAPES[shape], texture_name, size


def _best(match: Array) -> int | None:
    """The column that fits best, if it does so for nearly all rows: match [N, words] -> index."""
    best = int(match.mean(0).argmax())
    clear = match[:, best].mean() >= MIN_MATCH and np.mean(match.argmax(1) == best) >= STEADY
    return best if clear else None


@lru_cache(maxsize=1)
def _templates() -> tuple[Array, Array]:
    """Mean pictures [size, shape, texture, G, G] of drawn objects, and their regions' radius by the object's."""
    pictures = np.empty((len(world.SIZES), len(SHAPES), len(TEXTURES), GRID, GRID))
    extents = np.zeros((len(world.SIZES), len(SHAPES), len(TEXTURES)))
    for place in np.ndindex(extents.shape):
        size, shape, texture = list(world.SIZES)[place[0]], SHAPES[place[1]], TEXTURES[place[2]]
        scenes = [world.Scene(shape=shape, texture=texture, size=size, jitter=i) for i in range(DRAWS)]
        regions = _find_regions(np.concatenate([world.draw(scene, 1) for scene in scenes]))
        pictures[place] = regions.picture.mean(0)
        extents[place] = regions.radius.mean() / world.SIZES[size]
    return _normed(pictures), extents.mean(0)


# Motion -----------------------------------------------------------------------------------------------------------


def _tracks(regions: _Regions, count: int) -> tuple[Array, Array]:
    """Times [T], 0 to 1, of the frames with `count` objects, and the objects' centres [T, count], each in its column."""
    frames = np.flatnonzero(regions.counts == count)
    tracks = [regions.centre[regions.frame == frame] for frame in frames]
    for i in range(1, len(tracks)):
        distances = np.abs(tracks[i - 1][:, None] - tracks[i][None, :])
        tracks[i] = tracks[i][linear_sum_assignment(distances)[1]]
    return frames / max(1, len(regions.counts) - 1), np.stack(tracks)


def _motion(times: Array, tracks: Array) -> str:
    """The motion that tracks [T, objects], x + iy at times [T], follow."""
    if len(times) < MIN_POINTS:
        return NOTHING
    if _zoom_stray(times, tracks) < MAX_STRAY_STILL:
        return "still"
    fits = [(stray_from(path, tracks, apart=motion == "orbit"), motion) for motion, path in _paths(times)]
    stray, motion = min(fits)
    return motion if stray < MAX_STRAY else NOTHING


def _paths(times: Array) -> list[tuple[str, Array]]:
    """The world's motions as paths [T], x + iy; what swings or orbits may start either way."""
    turn = 2 * np.pi * times
    straight = [(motion, way * times) for motion, way in STRAIGHT.items()]
    return [
        *straight,
        ("bounce", -1j * world.HOP * np.abs(np.sin(turn))),
        ("swing", world.SWING * np.sin(turn) + 0j),
        ("swing", -world.SWING * np.sin(turn) + 0j),
        ("orbit", world.ORBIT * np.exp(1j * turn)),
        ("orbit", world.ORBIT * np.exp(-1j * turn)),
    ]


def stray_from(path: Array, tracks: Array, *, apart: bool) -> float:
    """How far tracks [T, objects] are from a path [T] of nearly the right extent and direction; else infinity.

    With `apart` each object may start at another point of the path.
    """
    tracks, path = tracks - tracks.mean(0), (path - path.mean())[:, None]
    factor = (path.conj() * tracks).sum(0) / (np.abs(path) ** 2).sum()
    if not apart:
        factor = factor.mean(keepdims=True)
        if abs(np.angle(factor[0])) > MAX_OFF_WAY:
            return math.inf
    if np.abs(factor).min() < MIN_WAY or np.abs(factor).max() > MAX_WAY:
        return math.inf
    return root_mean_square(tracks - factor * path)


def _zoom_stray(times: Array, tracks: Array) -> float:
    """How far tracks [T, objects] are from standing still before a camera that may zoom."""
    path = (times - times.mean())[:, None] * (tracks.mean(0) - (0.5 + 0.5j))
    factor = (path.conj() * tracks).sum().real / max(1e-9, (np.abs(path) ** 2).sum())
    return root_mean_square(tracks - tracks.mean(0) - np.clip(factor, -MAX_ZOOM, MAX_ZOOM) * path)


def root_mean_square(values: Array) -> float:
    """Of numbers, which may be complex."""
    return float(np.sqrt((np.abs(values) ** 2).mean()))
