"""Videos side by side in rows, each under a title. F frames, H W pixels of one video."""

from collections.abc import Sequence

import torch

from .film import title_strip

LONGEST_TITLE = 90


def video_grid(
    rows: Sequence[tuple[str, Sequence[torch.Tensor]]], titles: Sequence[str], *, width: int = 0
) -> torch.Tensor:
    """One video [F, H', W', 3] in 0..1 of all videos [F, H, W, 3] in 0..1, with even H' and W'.

    `rows`: a row's title and its videos, all of one shape. `titles`: of the columns. `width`: of each video in the grid, which
    is made smaller to it; 0: as it is.
    """
    parts: list[torch.Tensor] = []
    for number, (title, videos) in enumerate(rows):
        shown = torch.cat([_small(video, width) for video in videos], dim=2)
        if number == 0:
            parts.append(_strip(titles, shown, len(videos)))
        parts += [_strip([_short(title)], shown, len(videos)), shown]
    grid = torch.cat(parts, dim=1)
    return grid[:, : grid.shape[1] // 2 * 2, : grid.shape[2] // 2 * 2]


def _small(video: torch.Tensor, width: int) -> torch.Tensor:
    if not 0 < width < video.shape[2]:
        return video
    size = (max(2, round(video.shape[1] * width / video.shape[2] / 2) * 2), width)
    planes = video.permute(0, 3, 1, 2).float()
    return torch.nn.functional.interpolate(planes, size, mode="area").permute(0, 2, 3, 1).to(video)


def _strip(titles: Sequence[str], shown: torch.Tensor, columns: int) -> torch.Tensor:
    height = min(shown.shape[1], shown.shape[2] // columns)
    strip = torch.from_numpy(title_strip(titles, shown.shape[2], height)).to(shown) / 255
    return strip.expand(len(shown), *strip.shape)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TITLE else f"{text[: LONGEST_TITLE - 3]}..."
