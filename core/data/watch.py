"""What reading one file may cost, and how it is stopped in the middle.

The limits are on what has to be decoded, and far above real footage: an hour of 4K of which a part is used costs its packets
and a few groups of frames. They are there for files that are small and never end.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from .media import BadMediaError

R = TypeVar("R")

MAX_FRAMES = 2_000_000  # of one file: nine hours at 60 frames per second
MAX_HOURS = 24  # from the first frame to the end of the last
MAX_FRAME_PIXELS = 180_000_000  # of one picture or frame; PIL's own limit is a little below
MAX_ANIMATED_PIXELS = 2**26  # of a frame of gif, webp, apng, avif: 8192x8192
CLIP_PIXELS = 10**12  # decoded for one file or sample: an hour of 4K
ANIMATION_PIXELS = 2 * 10**10  # the same for PIL, which is slower: 2400 frames of 4K
MAX_SECONDS = 600  # of decoding for one file or sample; reading through a file is bounded by its size

_POLL_SECONDS = 0.2


class StoppedError(Exception):
    """Ends the reading of a file on a thread whose caller has given up; nobody is shown it."""


class Interrupt:
    """Lets `check` end work on threads: it may raise, and is called only on the thread that made this object."""

    def __init__(self, check: Callable[[], object] | None = None) -> None:
        self._check = check
        self._owner = threading.get_ident()
        self._stopped = threading.Event()

    def __call__(self) -> None:
        """Called again and again from inside the work, on any thread."""
        if self._stopped.is_set():
            raise StoppedError
        if self._check is not None and threading.get_ident() == self._owner:
            self._check()

    def result(self, future: "Future[R]") -> R:
        """What the future gives, asking `check` several times a second until it is there."""
        while not future.done():
            self()
            wait([future], timeout=_POLL_SECONDS)
        return future.result()

    def __enter__(self) -> "Interrupt":
        return self

    def __exit__(self, *_: object) -> None:
        """End all work that asks this object: nobody waits for it any more."""
        self._stopped.set()


class Work:
    """The reading of one file: ends it at the limits (BadMediaError) or when it is interrupted."""

    def __init__(self, interrupt: Interrupt | None, max_pixels: int, max_frame_pixels: int = MAX_FRAME_PIXELS) -> None:
        self._interrupt = interrupt
        self._max_pixels = max_pixels
        self._max_frame_pixels = max_frame_pixels
        self._pixels = 0
        self._packets = 0
        self._deadline = math.inf

    def look(self) -> None:
        """Between two steps of any kind."""
        if self._interrupt is not None:
            self._interrupt()

    def packet(self) -> None:
        """One frame more is in the file."""
        self._packets += 1
        if self._packets > MAX_FRAMES:
            raise BadMediaError(
                f"it has more than {MAX_FRAMES} frames, the limit for one file; cut it into shorter files"
            )
        self.look()

    def expect(self, num_frames: int, width: int, height: int) -> None:
        """Before so many frames of this size are decoded."""
        if num_frames > MAX_FRAMES:
            raise BadMediaError(
                f"it has {num_frames} frames, and {MAX_FRAMES} are the limit for one file; cut it into shorter files"
            )
        self._check_size(width, height)
        if self._pixels + num_frames * width * height > self._max_pixels:
            raise BadMediaError(
                f"{num_frames} frames of {width}x{height} would have to be decoded, and the limit for one file is "
                f"{self._max_pixels / 1e9:g} billion pixels; cut it into shorter files, or scale it down"
            )
        self.look()

    def frame(self, width: int, height: int) -> None:
        """Before (or, where its size is not known before, after) one frame is decoded."""
        self.expect(1, width, height)
        self._pixels += width * height
        self._deadline = min(self._deadline, time.monotonic() + MAX_SECONDS)
        if time.monotonic() > self._deadline:
            raise BadMediaError(
                f"decoding it took more than {MAX_SECONDS} seconds; cut it into shorter files", passing=True
            )

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_frame_pixels:
            raise BadMediaError(
                f"it is {width}x{height} pixels, and {self._max_frame_pixels / 1e6:.0f} million are the limit; scale it down"
            )


def check_span(microseconds: float) -> None:
    """BadMediaError if a clip runs for longer than any real one: then its timestamps are damaged."""
    if not microseconds <= MAX_HOURS * 3_600_000_000:
        raise BadMediaError(
            f"its frames span {microseconds / 3_600_000_000:.3g} hours, and {MAX_HOURS} are the limit for one file: its "
            "timestamps are damaged, so convert it again, or cut it into shorter files"
        )
