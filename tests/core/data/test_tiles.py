import itertools

import pytest
import torch
from wan_train.core.data.tiles import OVERLAP, TILE, encode_in_tiles, tile_starts
from wan_train.tests.core.data.test_encode import PoolVAE


@pytest.mark.parametrize("length", range(16, 2000, 16))
def test_tiles_cover_a_side_and_overlap(length):
    starts = tile_starts(length)
    assert starts[0] == 0
    assert starts[-1] + TILE == max(length, TILE)
    assert all(start % 16 == 0 for start in starts)
    assert all(0 < b - a <= TILE - OVERLAP for a, b in itertools.pairwise(starts))
    assert len(starts) == max(1, -(-(length - OVERLAP) // (TILE - OVERLAP)))  # no more than needed


@pytest.mark.parametrize(("latent_format", "size"), [("wan2.1", (5, 272, 480)), ("wan2.2", (1, 640, 64))])
@torch.no_grad()
def test_tiles_of_an_encoder_that_looks_at_no_neighbours_are_the_whole(latent_format, size):
    """Average pooling knows nothing of what lies beyond its window: seams, weights and places alone could differ."""
    vae = PoolVAE(latent_format)
    frames = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = encode_in_tiles(vae.encode, frames, vae.scale)
    assert vae.calls == len(tile_starts(size[1])) * len(tile_starts(size[2])) > 1
    torch.testing.assert_close(latents, vae.encode(frames), rtol=1e-5, atol=1e-6)


def test_neighbours_fade_into_each_other():
    """Tiles that say how far right they lie: along a row the values rise, and never jump."""
    seen = []

    def encode(frames):
        seen.append(len(seen))
        return torch.full((1, 1, frames.shape[1] // 8, frames.shape[2] // 8), float(seen[-1]))

    row = encode_in_tiles(encode, torch.zeros(1, 64, 448, 3), 8)[0, 0, 0]
    assert seen == [0, 1]
    assert (row[:24] == 0).all()
    assert (row[-24:] == 1).all()
    assert ((row[1:] - row[:-1]) >= 0).all()
    assert (row[1:] - row[:-1]).max() < 0.2
