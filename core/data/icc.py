"""Colour profiles of pictures: colours of a profile other than sRGB become those of sRGB, by LittleCMS through PIL."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_NOTICED = 3  # levels; a profile that changes no colour by more is taken as sRGB
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile, to PIL's mode
_STEPS = 9  # of each channel, in what profiles are tried with


def profile_changes(image: Image.Image) -> bool:
    """Whether the picture has a profile that shows other colours than sRGB does. ValueError for one that can't be read."""
    if not image.info.get("icc_profile"):
        return False
    mode = _mode(image)
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    if mode == "L":
        colours = Image.fromarray(levels[None])
    else:
        grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), -1).reshape(1, -1, len(mode))
        colours = Image.fromarray(grid, mode)
    plain = np.asarray(colours.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(_converted(colours, image)).astype(int) - plain).max() > _NOTICED)


def to_srgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where the picture can be transparent, in sRGB. ValueError for a profile that can't be read."""
    mode = _mode(image)
    if image.mode == mode:
        found = _converted(image, image)
        if "transparency" in image.info:  # one colour is
            found.putalpha(image.convert("RGBA").getchannel("A"))
        return found
    rgba = image.convert("RGBA")  # also of a palette, in which one colour is transparent
    converted = _converted(rgba.convert("RGB").convert(mode), image)
    converted.putalpha(rgba.getchannel("A"))
    return converted


def _mode(image: Image.Image) -> str:
    """PIL's mode for the colours that the picture's profile is for."""
    try:
        profile: Any = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        mode = _SPACES.get(profile.profile.xcolor_space.strip())
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError("it can't be read") from error
    is_grey, is_cmyk = image.mode in ("1", "L", "LA", "La"), image.mode == "CMYK"
    if (
        mode is None
        or is_cmyk != (mode == "CMYK")
        or (mode == "L" and not is_grey)
        or image.mode.startswith(("I", "F"))
    ):
        raise ValueError("it is one for other kinds of pictures")
    return mode


def _converted(image: Image.Image, tagged: Image.Image) -> Image.Image:
    """A picture in the colours of `tagged`'s profile as RGB in sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(tagged.info["icc_profile"]))
        found = ImageCms.profileToProfile(
            image,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError("it can't be read") from error
    assert found is not None
    return found
