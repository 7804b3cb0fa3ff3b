"""What a probe finds in a file: its size and times, and how its pixels are to be read beyond plain decoding.

A file that needs nothing of `READINGS` is read as it always was, and its cached latents stay valid. What a file needs is in
the key of its content: those latents alone are encoded anew.
"""

from dataclasses import dataclass

# Each with the sentence that is told of the file.
INTERLACED, VPX_ALPHA, ANIMATION = "interlaced", "vpx alpha", "animation"
PQ, HLG, BT2020, P3, ICC = "pq", "hlg", "bt2020", "p3", "icc"
READINGS = {
    INTERLACED: "it is interlaced: its frames are deinterlaced (bwdif)",
    VPX_ALPHA: "it is partly transparent: it is laid on white",
    ANIMATION: "its first picture is no part of the animation, and is not used",
    PQ: "it is HDR (PQ): it is brought to SDR, white of 203 nits near 255",
    HLG: "it is HDR (HLG): it is brought to SDR, white of 203 nits near 255",
    BT2020: "its colours are wide (BT.2020): they are brought to those of an ordinary screen",
    P3: "its colours are wide (P3): they are brought to those of an ordinary screen",
    ICC: "it has a colour profile other than sRGB: its colours are brought to sRGB",
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a readable file."""

    width: int  # as displayed
    height: int
    times_us: tuple[int, ...]  # start of each frame in display order, in microseconds from the first
    end_us: int  # end of the last frame; 0 for a still image
    read_as: tuple[str, ...] = ()  # of `READINGS`
    has_alpha: bool = False  # something in it can be transparent
    remarks: tuple[str, ...] = ()  # what else there is to say of it, as clauses

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        return self.width, self.height
