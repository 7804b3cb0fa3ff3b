"""From HDR and wide primaries to the 8-bit RGB of ordinary clips. Shapes: H W height and width of a frame.

Signals become light, relative to diffuse white: PQ and HLG by ITU-R BT.2100-2 (tables 4 and 5), with diffuse white at 203
nits (BT.2408-7, table 1) and an HLG screen of 1000 nits, whose system gamma is 1.2; others by a screen's 2.4 (BT.1886).
Light changes its primaries by way of CIE XYZ, and becomes a signal by the inverse of BT.1886: what a screen for ordinary
clips shows is then what an HDR screen showed, up to its white. Light above 0.9 of white is rolled off by Reinhard's
extended operator (Reinhard et al., 2002, equation 4), on the largest of R, G and B so that hues stay; 1000 nits reach 255.
"""

from functools import lru_cache

import numpy as np

from .reading import BT2020, HLG, P3, PQ

WHITE_NITS = 203.0  # of diffuse white (BT.2408-7)
PEAK_NITS = 1000.0  # brighter light is cut off
_KNEE = 0.9  # of white, from which light is rolled off
_GAMMA = 2.4  # of a screen (BT.1886)
_LEVELS = 65536
_ROWS = 64  # converted at once: what fits into a processor's cache is several times as fast
# x and y of red, green, blue: BT.709-6, BT.2020-2, SMPTE EG 432-1; white is D65 in all of them.
_PRIMARIES = {
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)


def needs_sdr(read_as: tuple[str, ...]) -> bool:
    """Whether frames that are read so go through `to_sdr`."""
    return any(name in read_as for name in (PQ, HLG, BT2020, P3))


def to_sdr(pixels: np.ndarray, read_as: tuple[str, ...]) -> np.ndarray:
    """Full-range R'G'B' [H, W, 3] uint16, of the transfer and primaries that `read_as` names, to BT.709's, uint8."""
    result = np.empty(pixels.shape, np.uint8)
    light_of = _light(PQ if PQ in read_as else HLG if HLG in read_as else "")
    matrix = _matrix(next((name for name in (BT2020, P3) if name in read_as), "bt709"))
    signal_of = _signal()
    for start in range(0, len(pixels), _ROWS):
        light = light_of[pixels[start : start + _ROWS]]  # [rows, W, 3] float32, 1 is diffuse white
        if HLG in read_as:  # from the scene's light to the screen's (BT.2100-2, table 5: OOTF)
            luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            light *= (PEAK_NITS / WHITE_NITS * np.maximum(luminance, 1e-9) ** 0.2)[..., None]
        light = np.maximum(light @ matrix.T, 0)
        if PQ in read_as or HLG in read_as:
            light *= _roll_off(light.max(-1))[..., None]
        np.minimum(light, 1, out=light)
        np.sqrt(light, out=light)  # so that a table is fine enough near black
        light *= _LEVELS - 1
        light += 0.5
        result[start : start + _ROWS] = signal_of[light.astype(np.uint16)]
    return result


def _roll_off(largest: np.ndarray) -> np.ndarray:
    """The factor that brings light [H, W], 1 is white, below 1: 1 up to the knee."""
    room, peak = 1 - _KNEE, (PEAK_NITS / WHITE_NITS - _KNEE) / (1 - _KNEE)
    above = np.maximum(largest - _KNEE, 0) / room
    rolled = np.minimum(largest, _KNEE) + room * above * (1 + above / peak**2) / (1 + above)
    return np.minimum(rolled, 1) / np.maximum(largest, 1e-9)


@lru_cache
def _light(transfer: str) -> np.ndarray:
    """Light for each of 65536 levels of a signal, float32: 1 is diffuse white, and for HLG the scene's largest."""
    signal = np.linspace(0, 1, _LEVELS)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = signal ** (1 / m2)
        light = 10_000 / WHITE_NITS * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_GAMMA
    return light.astype(np.float32)


@lru_cache
def _signal() -> np.ndarray:
    """The 8-bit signal for each of 65536 square roots of light."""
    return np.rint(255 * np.linspace(0, 1, _LEVELS) ** (2 / _GAMMA)).astype(np.uint8)


@lru_cache
def _matrix(primaries: str) -> np.ndarray:
    """[3, 3] float32 from light of these primaries to light of BT.709's."""
    return (np.linalg.inv(_to_xyz("bt709")) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: str) -> np.ndarray:
    """[3, 3] from RGB to CIE XYZ (SMPTE RP 177): columns are the primaries, scaled so that their sum is white."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in _PRIMARIES[primaries]]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])
