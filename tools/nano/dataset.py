"""Draws a small captioned dataset of one concept: `python -m tools.nano dataset FOLDER --concept star --clips 24`.

Made so, with the defaults: nano/datasets/star, which comes with the pack.
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ...core.errors import ConfigError
from ...core.words import counted
from . import world
from .concepts import CONCEPTS, write_dataset

# Chroma at half the resolution would smear the colours of objects that are 20 pixels wide: RGB, without loss.
LOSSLESS = {"qp": "0", "preset": "veryslow"}


def write_lossless(path: Path, frames: list[np.ndarray], fps: int) -> None:
    """Encode [H, W, 3] uint8 frames with even H and W as h264 in an mp4 file; what is decoded is what was given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(fps), options=LOSSLESS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1  # equal bytes each time
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_dataset(folder: Path, concept: str, clips: int, seed: int, others: int = 0) -> list[Path]:
    """Write clips as the nano models see them, each with a caption (see `write_dataset`); ConfigError if files are there."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} has files in it, which would become part of the dataset: name an empty folder.")
    taught = CONCEPTS[concept]
    return write_dataset(folder, taught, clips, seed, others=others, size=world.SIZE, write_clip=write_lossless)


def main(arguments: list[str]) -> None:
    """Write the dataset, and say how large it is."""
    parser = argparse.ArgumentParser(prog="tools.nano dataset", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concept", choices=list(CONCEPTS), default="star")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--others", type=int, default=0, help="clips of what the base knows, besides")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        paths = make_dataset(options.folder, options.concept, options.clips, options.seed, options.others)
    except ConfigError as error:
        sys.exit(f"Failed: {error}")
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    word = CONCEPTS[options.concept].trigger
    print(f"{counted(len(paths), 'clip')}, {size / 1e3:.0f} kB, trigger word '{word}': {options.folder}")
