"""The world that the nano models know: shapes in motion, drawn from a description.

A `Scene` says what is to be seen; `draw` draws it, `caption` says it in words. Objects are coloured, backgrounds are
grey, so an object can be told from the ground without learning. Positions and lengths are in units of the picture's
side, y down; time runs from 0 to 1 over a clip.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Array = np.ndarray

SIZE = 64  # pixels of a side
NUM_FRAMES = 17
FPS = 16
SUPERSAMPLE = 3

COLOURS = {
    "red": (222, 42, 42),
    "yellow": (232, 205, 40),
    "green": (44, 170, 62),
    "cyan": (40, 205, 210),
    "blue": (44, 82, 222),
    "purple": (165, 48, 205),
}
BACKGROUNDS = ("black", "grey", "white", "tiled")
SIZES = {"small": 0.155, "large": 0.2}  # radius
SHAPES = ("circle", "square", "triangle", "diamond")
MOTIONS = ("still", "left", "right", "up", "down", "orbit", "bounce")
TEXTURES = ("plain", "striped", "quartered")
CAMERAS = ("fixed", "zoom in", "zoom out", "pan left", "pan right")

# What the base never sees, so that a LoRA can teach it.
NEW_SHAPES = ("star", "heart", "moon")
NEW_MOTIONS = ("swing", "dive")
NEW_TEXTURES = ("barred", "cored")
NEW_CAMERAS = ("tilt up",)
NEW_PALETTES = {"duotone": {"yellow": "red", "purple": "red", "green": "blue", "cyan": "blue"}}

SHADE = 0.4  # brightness of a texture's dark parts
TRAVEL = 0.44  # way of a straight motion
DIVE = 0.25  # way of a dive, in each direction
HOP = 0.36  # height of a bounce
SWING = 0.22  # to either side
ORBIT = 0.25  # radius
APART = 0.23  # distance of each of two objects from their middle


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is to be seen. Attributes are words; `jitter` seeds what no word says: exact place, phase, shade."""

    shape: str = "circle"
    colour: str = "red"
    texture: str = "plain"
    size: str = "large"
    count: int = 1
    background: str = "black"
    motion: str = "still"
    camera: str = "fixed"
    palette: str = "full"  # not told apart by the split: with another one, a scene stays on its side
    jitter: int = 0

    @property
    def seen_motion(self) -> str:
        """How the objects move across the picture: a camera that pans left makes what stands still go right."""
        return {"pan left": "right", "pan right": "left", "tilt up": "down"}.get(self.camera, self.motion)

    @property
    def seen_colour(self) -> str:
        """The colour that the objects have: a palette that has fewer gives them another than the words say."""
        return NEW_PALETTES.get(self.palette, {}).get(self.colour, self.colour)

    @property
    def is_test(self) -> bool:
        """Whether this combination of words is kept for tests: one in eight, by its digest."""
        words = "/".join(map(str, (self.shape, self.colour, self.texture, self.size, self.count, self.background,
                                   self.motion, self.camera)))  # fmt: skip
        return hashlib.sha256(words.encode()).digest()[0] % 8 == 0


# Scenes -----------------------------------------------------------------------------------------------------------


def random_scene(rng: random.Random) -> Scene:
    """Any scene of the base's world. One in ten has a moving camera; objects then stand still on tiles.

    Small objects are plain: at this size a texture would leave too few pixels of the shape. Of two objects both are small:
    large ones come so close to each other that the VAE's latents, eight pixels wide, mix them up.
    """
    count = rng.choice((1, 1, 2))
    size = rng.choice(list(SIZES)) if count == 1 else "small"
    scene = Scene(
        shape=rng.choice(SHAPES),
        colour=rng.choice(list(COLOURS)),
        texture=rng.choice(TEXTURES) if size == "large" else "plain",
        size=size,
        count=count,
        background=rng.choice(BACKGROUNDS),
        motion=rng.choice(MOTIONS),
        jitter=rng.getrandbits(32),
    )
    if rng.random() < 0.1:
        scene = replace(scene, camera=rng.choice(CAMERAS[1:]), background="tiled", motion="still")
    return scene


def scenes(seed: int, split: Literal["train", "test", "any"] = "any") -> Iterator[Scene]:
    """An endless sequence of scenes; `train` and `test` share no combination of words."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        if split == "any" or scene.is_test == (split == "test"):
            yield scene


# Words ------------------------------------------------------------------------------------------------------------

_COUNT = {1: ("a", "one"), 2: ("two", "a pair of")}
_SIZE = {"small": ("small", "little"), "large": ("large", "big")}
_MOTION = {
    "still": ("standing still", "at rest", "not moving"),
    "left": ("moving left", "going to the left", "sliding left"),
    "right": ("moving right", "going to the right", "sliding right"),
    "up": ("moving up", "going upwards", "rising"),
    "down": ("moving down", "going downwards", "sinking"),
    "orbit": ("orbiting", "in orbit", "orbiting the middle"),
    "bounce": ("bouncing", "bouncing on the floor", "hopping"),
    "swing": ("swinging from side to side",),
    "dive": ("diving into the corner",),
}
_CAMERA = {
    "zoom in": ("the camera zooms in", "zooming in"),
    "zoom out": ("the camera zooms out", "zooming out"),
    "pan left": ("camera pan to the left", "leftward pan"),
    "pan right": ("camera pan to the right", "rightward pan"),
    "tilt up": ("the camera tilts",),
}
_PALETTE = {"duotone": "in two colours"}
_TEMPLATES = (
    "{count} {size} {look} {shape} {motion} on a {background} background{camera}",
    "on a {background} background {count} {size} {look} {shape} {motion}{camera}",
    "{count} {look} {shape}, {size}, {motion}, {background} background{camera}",
    "{background} background{camera}: {count} {size} {look} {shape} {motion}",
)


def caption(scene: Scene, rng: random.Random, words: dict[str, str] | None = None, *, still: bool = False) -> str:
    """The scene in one of many phrasings; `words` replaces what names an attribute ({"shape": "[trigger]"}).

    With `still` the caption is that of a single frame: no motion, no camera.
    """
    words = words or {}
    plural = scene.count > 1
    shape = words.get("shape") or _plural(scene.shape, plural)
    texture = words.get("texture") or ("" if scene.texture == "plain" and rng.random() < 0.5 else scene.texture)
    motion = words.get("motion") or rng.choice(_MOTION[scene.motion])
    camera = "" if scene.camera == "fixed" else f", {words.get('camera') or rng.choice(_CAMERA[scene.camera])}"
    palette = "" if scene.palette == "full" else f", {words.get('palette') or _PALETTE[scene.palette]}"
    look = [word for word in (texture, scene.colour) if word]
    if rng.random() < 0.5:
        look.reverse()
    text = rng.choice(_TEMPLATES).format(
        count=rng.choice(_COUNT[scene.count]),
        size=rng.choice(_SIZE[scene.size]),
        look=" ".join(look),
        shape=shape,
        motion="" if still else motion,
        background=scene.background,
        camera="" if still else camera,
    )
    return " ".join((text + palette).split()).replace(" ,", ",").replace(",,", ",")


def _plural(shape: str, plural: bool) -> str:
    if not plural:
        return shape
    return shape + ("es" if shape.endswith("s") else "s")


# Drawing ----------------------------------------------------------------------------------------------------------


def draw(scene: Scene, num_frames: int = NUM_FRAMES, size: int = SIZE) -> Array:
    """Frames [F, size, size, 3] uint8."""
    rng = random.Random(scene.jitter)
    placed = _Placed(scene, rng)
    times = [i / (num_frames - 1) for i in range(num_frames)] if num_frames > 1 else [rng.random()]
    return np.stack([_draw_frame(placed, t, size) for t in times])


class _Placed:
    """A scene with everything drawn at random that its words leave open."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene = scene
        self.centre = (0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.06, 0.06))
        self.phase = rng.random()
        self.light = rng.uniform(0.92, 1.06)
        self.radius = SIZES[scene.size] * rng.uniform(0.94, 1.06)
        self.tile_phase = (rng.random(), rng.random())

    def camera(self, t: float) -> tuple[float, tuple[float, float]]:
        """Zoom factor and shift of the picture at time t, x and y."""
        zoom = {"zoom in": 0.72 + 0.46 * t, "zoom out": 1.18 - 0.46 * t}.get(self.scene.camera, 1.0)
        across = {"pan left": t - 0.5, "pan right": 0.5 - t}.get(self.scene.camera, 0.0) * TRAVEL
        down = {"tilt up": t - 0.5}.get(self.scene.camera, 0.0) * TRAVEL
        return zoom, (across, down)

    def centres(self, t: float) -> list[tuple[float, float]]:
        """Centres of the objects in the picture at time t."""
        zoom, (across, down) = self.camera(t)
        if self.scene.motion == "orbit":
            angles = [2 * math.pi * (t + self.phase + i / self.scene.count) for i in range(self.scene.count)]
            points = [(0.5 + ORBIT * math.cos(angle), 0.5 + ORBIT * math.sin(angle)) for angle in angles]
        else:
            dx, dy = self._way(t)
            points = [(self.centre[0] + dx + ox, self.centre[1] + dy + oy) for ox, oy in self._offsets()]
        return [(0.5 + (x - 0.5) * zoom + across, 0.5 + (y - 0.5) * zoom + down) for x, y in points]

    def _way(self, t: float) -> tuple[float, float]:
        """Displacement at time t from the object's place."""
        straight, dive = TRAVEL * (t - 0.5), DIVE * (t - 0.5)
        hop = HOP * (0.5 - abs(math.sin(2 * math.pi * t)))
        swing = SWING * math.sin(2 * math.pi * t)
        ways = {
            "still": (0.0, 0.0), "left": (-straight, 0.0), "right": (straight, 0.0), "up": (0.0, -straight),
            "down": (0.0, straight), "bounce": (0.0, hop), "swing": (swing, 0.0),
            "dive": (dive, dive),
        }  # fmt: skip
        return ways[self.scene.motion]

    def _offsets(self) -> list[tuple[float, float]]:
        """Two objects stand side by side, or one above the other where they move sideways."""
        if self.scene.count == 1:
            return [(0.0, 0.0)]
        if self.scene.motion == "dive":  # across its way
            x, y = 0.85 * APART, -0.85 * APART
        elif self.scene.seen_motion in ("left", "right", "swing"):
            x, y = 0.0, APART
        else:
            x, y = APART, 0.0
        return [(-x, -y), (x, y)]


def _draw_frame(placed: _Placed, t: float, size: int) -> Array:
    zoom, shift = placed.camera(t)
    frame = np.repeat(_background(placed, size, zoom, shift)[..., None], 3, axis=2)
    colour = np.array(COLOURS[placed.scene.seen_colour], dtype=np.float32) * placed.light
    for centre in placed.centres(t):
        covered, dark = _coverage(placed.scene, centre, placed.radius * zoom, size)
        frame += covered[..., None] * (colour - frame) + dark[..., None] * (SHADE - 1) * colour
    return np.clip(frame + 0.5, 0, 255).astype(np.uint8)


def _coverage(scene: Scene, centre: tuple[float, float], radius: float, size: int) -> tuple[Array, Array]:
    """How much of each pixel [size, size] the object covers, and how much its dark parts do, 0 to 1."""
    covered, dark = np.zeros((2, size, size), dtype=np.float32)
    reach = 1.25 * radius
    low = [max(0, math.floor((c - reach) * size)) for c in centre]
    high = [min(size, math.ceil((c + reach) * size)) for c in centre]
    if low[0] >= high[0] or low[1] >= high[1]:
        return covered, dark
    u, v = (
        ((np.arange(a * SUPERSAMPLE, b * SUPERSAMPLE) + 0.5) / (size * SUPERSAMPLE) - c) / radius
        for a, b, c in zip(low, high, centre, strict=True)
    )
    u, v = np.broadcast_arrays(u[None, :], v[:, None])
    inside = SHAPE_TESTS[scene.shape](u, v)
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    covered[box] = _pool(inside)
    dark[box] = _pool(inside & TEXTURE_TESTS[scene.texture](u, v))
    return covered, dark


def _pool(fine: Array) -> Array:
    """Means over blocks of SUPERSAMPLE x SUPERSAMPLE."""
    height, width = (n // SUPERSAMPLE for n in fine.shape)
    return fine.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).mean((1, 3), dtype=np.float32)


def _background(placed: _Placed, size: int, zoom: float, shift: tuple[float, float]) -> Array:
    """Grey values [size, size] float32."""
    plain = {"black": 16.0, "grey": 118.0, "white": 236.0}
    name = placed.scene.background
    if name in plain:
        return np.full((size, size), min(255.0, plain[name] * placed.light), dtype=np.float32)
    grid = (np.arange(size * SUPERSAMPLE) + 0.5) / (size * SUPERSAMPLE) - 0.5
    lines = [
        (1 - 2 * (np.floor(4 * (grid - move) / zoom + phase) % 2)).reshape(size, SUPERSAMPLE).mean(1)
        for move, phase in zip(shift, placed.tile_phase, strict=True)
    ]
    return (82 + 22 * lines[1][:, None] * lines[0][None, :]).astype(np.float32)


Test = Callable[[Array, Array], Array]  # (u, v) in units of the radius, v down -> inside


def _polygon(points: Sequence[tuple[float, float]]) -> Test:
    """Even-odd rule."""

    def test(u: Array, v: Array) -> Array:
        inside = np.zeros(u.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if y0 != y1:
                inside ^= ((v < y0) != (v < y1)) & (u < x0 + (v - y0) * (x1 - x0) / (y1 - y0))
        return inside

    return test


def _wheel(radii: Sequence[float], turn: float = -0.25) -> list[tuple[float, float]]:
    """Corners around the centre, the first one straight up."""
    angles = [2 * math.pi * (turn + i / len(radii)) for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart(u: Array, v: Array) -> Array:
    lobes = ((np.abs(u) - 0.48) ** 2 + (v + 0.38) ** 2) < 0.52**2
    point = (np.abs(u) < 0.98 * (1 - (v + 0.3) / 1.3)) & (v > -0.3) & (v < 1.0)
    return lobes | point


SHAPE_TESTS: dict[str, Test] = {
    "circle": lambda u, v: u * u + v * v < 1.0,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.88,
    "triangle": _polygon([(0.0, -1.1), (1.08, 0.82), (-1.08, 0.82)]),
    "diamond": lambda u, v: np.abs(u) + np.abs(v) < 1.05,
    "star": _polygon(_wheel([1.15, 0.46] * 5)),
    "heart": _heart,
    "moon": lambda u, v: (u * u + v * v < 1.0) & ((u - 0.55) ** 2 + v * v > 0.78**2),
}
TEXTURE_TESTS: dict[str, Test] = {
    "plain": lambda u, _v: np.zeros(u.shape, dtype=bool),
    "striped": lambda _u, v: np.cos(2 * math.pi * v) < 0,
    "quartered": lambda u, v: u * v < 0,
    "barred": lambda u, _v: np.cos(2 * math.pi * u) < 0,
    "cored": lambda u, v: u * u + v * v < 0.62**2,
}
