"""Clips and pictures with known troubles, drawn by numbers: [F, H, W, 3] uint8."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from wan_train.tools.shapes import Scene, draw_frame, write_clip

SIZE = 192
RED = Scene("circle", "red", "a cream", "to the right", 0.2, 0.0)
BLUE = Scene("star", "blue", "a dark grey", "upwards", 0.22, 0.25)


def moving(scene: Scene = RED, frames: int = 17) -> np.ndarray:
    """A shape that moves."""
    return np.stack([draw_frame(scene, i / (frames - 1), SIZE) for i in range(frames)])


def cut(at: int = 9) -> np.ndarray:
    """One scene, and from frame `at` on another."""
    return np.concatenate([moving()[:at], moving(BLUE)[at:]])


def flash() -> np.ndarray:
    """A scene with one white frame."""
    frames = moving()
    frames[8] = 255
    return frames


def still() -> np.ndarray:
    """The same frame again and again, with a little noise, as compression makes it."""
    noise = np.random.default_rng(0).integers(-4, 5, (17, SIZE, SIZE, 3))
    return (moving()[:1].astype(int) + noise).clip(0, 255).astype(np.uint8)


def barred(top: int = 24, left: int = 0) -> np.ndarray:
    """A letterbox, or a pillarbox."""
    frames = moving().copy()
    if top:
        frames[:, :top] = frames[:, -top:] = 4
    if left:
        frames[:, :, :left] = frames[:, :, -left:] = 4
    return frames


def textured(frames: int = 17, seed: int = 0) -> np.ndarray:
    """Sharp patches of all sizes that slide."""
    random = np.random.default_rng(seed)
    layers = [np.kron(random.integers(0, 256, (512 // n, 512 // n, 3)), np.ones((n, n, 1))) for n in (4, 16, 64)]
    ground = np.mean([layer[:448, :448] for layer in layers], 0).astype(np.uint8)
    return np.stack([ground[2 * i : 2 * i + SIZE, 3 * i : 3 * i + SIZE] for i in range(frames)])


def blurred(radius: float = 4.0) -> np.ndarray:
    """The same, out of focus."""
    return np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(radius))) for f in textured()])


def write(folder: Path, name: str, frames: np.ndarray, caption: str | None, fps: int = 16) -> Path:
    """A clip, or a picture for a single frame, and its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if len(frames) == 1:
        Image.fromarray(frames[0]).save(path)
    else:
        write_clip(path, list(frames), fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return path


def write_mixed(folder: Path) -> Path:
    """24 files: sound ones, and one or two of each trouble. The trigger word is ohwx."""
    write(folder, "a_cut.mp4", cut(), "ohwx a cut")
    write(folder, "b_bars.mp4", barred(), "ohwx a letterbox")
    write(folder, "c_still.mp4", still(), "ohwx a still")
    write(folder, "d_blurred.mp4", blurred(), "ohwx out of focus")
    write(folder, "e_slow.mp4", moving(frames=9), "ohwx of 8 frames a second", fps=8)
    write(folder, "f_twin_1.mp4", moving(BLUE), "ohwx one twin")
    write(folder, "f_twin_2.mp4", moving(BLUE)[:, 2:-2, 2:-2], "ohwx another twin")
    write(folder, "g_long.mp4", textured(seed=1), "ohwx " + "a very long caption " * 150)
    write(folder, "h_none.png", textured(1, 2), None)
    write(folder, "i_same_1.png", textured(1, 3), "ohwx the same")
    write(folder, "i_same_2.png", textured(1, 4), "ohwx the same")
    write(folder, "j_wide.png", textured(1, 5)[:, :96], "a wide one without the word")
    write(folder, "k_broken.mp4", moving(), "ohwx broken")
    data = (folder / "k_broken.mp4").read_bytes()
    (folder / "k_broken.mp4").write_bytes(data[: len(data) // 2])
    for number in range(11):
        clip = number % 3
        name = f"ok_{number:02d}." + ("mp4" if clip else "png")
        write(folder, name, textured(33 if clip == 2 else 17 if clip else 1, 10 + number), f"ohwx sound {number}")
    return folder
