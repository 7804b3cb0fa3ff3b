"""What an image-to-video model is given besides text: the first frame, perhaps the last, and in Wan 2.1 CLIP features.

F frames, H W pixels, C channels, f h w latent frames, height, width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.buckets import cover_box
from ..data.conditioning import hide_unknown, known_mask
from ..data.media import BadMediaError
from ..data.pictures import read_picture
from ..encoders.vae import WanVideoEncoder
from ..encoders.vision import check_vision_file, load_vision_encoder
from ..errors import CLIP_VISION, ConfigError
from ..settings.dataset import Conditioning
from ..wan.config import WanConfig
from .experts import Forward, from_first_frame, from_known_frames, from_text


@dataclass(frozen=True, kw_only=True)
class GivenFrames:
    """Images that a video starts and ends with, and the model that Wan 2.1 sees them through."""

    start_image: Path | None = None
    end_image: Path | None = None
    clip_vision: Path | None = None

    @property
    def images(self) -> dict[str, Path]:
        """By what they are, in the order of the video."""
        named = {"start image": self.start_image, "end image": self.end_image}
        return {name: path for name, path in named.items() if path is not None}


def check_given(given: GivenFrames, config: WanConfig, name: str) -> None:
    """ConfigError or ModelFileError if the model called `name` needs something else; reads the header of CLIP vision."""
    _check_images(given, config, name)
    if config.image_dim is None:
        if given.clip_vision is not None:
            raise ConfigError(f"{name} takes no CLIP features: leave CLIP vision out.")
    elif given.clip_vision is None:
        raise ConfigError(
            f"{name} is a Wan 2.1 model that needs the CLIP features of its images: give clip_vision_h.safetensors.",
            about=CLIP_VISION,
        )
    else:
        check_vision_file(given.clip_vision)


def _check_images(given: GivenFrames, config: WanConfig, name: str) -> None:
    needed, taken = {
        "t2v": ((), ()),
        "i2v": (("start image",), ("start image", "end image")),
        "flf2v": (("start image", "end image"), ("start image", "end image")),
        "ti2v": ((), ("start image",)),
    }[config.variant]
    for kind in needed:
        if kind not in given.images:
            raise ConfigError(f"{name} makes videos from images: give {'an' if kind[0] == 'e' else 'a'} {kind}.")
    for kind, path in given.images.items():
        if kind not in taken:
            what = "a text-to-video model" if config.variant == "t2v" else "a model of the first frame alone"
            raise ConfigError(f"{name} is {what} and takes no {kind}: leave it out.")
        if not path.is_file():
            raise ConfigError(f"the {kind} {path} does not exist: give an image file.")


def given_forward(
    given: GivenFrames, config: WanConfig, size: tuple[int, int, int], video: WanVideoEncoder, device: torch.device
) -> Forward:
    """How the model is called with what was given, for videos of `size`: pixel frames F, height and width.

    CLIP vision is loaded onto the device, and let go of. ConfigError if an image cannot be read.
    """
    if given.start_image is None:
        return from_text
    pictures = [read_image(path, name) for name, path in given.images.items()]
    num_frames, height, width = size
    first, *last = (fit_image(picture, width, height)[None] for picture in pictures)  # [1, H, W, 3]
    if config.variant == "ti2v":
        return from_first_frame(video.encode(first))
    conditioning: Conditioning = "first and last frame" if last else "first frame"
    # Only the known frames are looked at.
    frames = torch.cat([first.expand(num_frames - len(last), -1, -1, -1), *last])
    known = video.encode(hide_unknown(frames, conditioning))  # [C, f, h, w]
    mask = known_mask(conditioning, (known.shape[1], known.shape[2], known.shape[3]))
    features = None if given.clip_vision is None else _clip_features(given.clip_vision, pictures, device)
    return from_known_frames(torch.cat([mask, known]), features)


def read_image(path: Path, name: str) -> Image.Image:
    """The first picture of a file; ConfigError, which calls it `name`, if there is none."""
    try:
        ((_, image),) = read_picture(path, [0])
    except BadMediaError as error:
        raise ConfigError(f"the {name} {path} cannot be used: {error}.") from error
    return image


def fit_image(image: Image.Image, width: int, height: int) -> Tensor:
    """[H, W, 3] uint8: scaled to cover width x height, and cut at its centre."""
    box = cover_box(image.width, image.height, (width, height))
    return _pixels(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _clip_features(path: Path, pictures: list[Image.Image], device: torch.device) -> Tensor:
    """[257 for each picture, 1280] float32. CLIP sees whole pictures, as in ComfyUI's graphs."""
    vision = load_vision_encoder(path, device)
    features = torch.cat([vision.encode(_pixels(picture)) for picture in pictures])
    del vision
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return features


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))
