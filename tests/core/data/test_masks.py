"""Masks: found where the peers put them, cut and flipped with the pixels, and in latents what a sum by hand says."""

import av
import numpy as np
import pytest
import torch
from PIL import Image
from wan_train.core.data.decode import read_frames, read_mask
from wan_train.core.data.encode import cache_latents
from wan_train.core.data.masks import to_latents
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import DatasetError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.data.test_encode import PoolVAE


def scan(folder, **options):
    shared = {"width": 64, "height": 64, "num_frames": 5, "default_caption": "x", "aspect_buckets": False}
    within = options.pop("within", None)
    return scan_folder(folder, DatasetOptions(**{**shared, **options}), within=within)


def told(dataset):
    return [str(note) for note in dataset.notes]


def half(path, size=(64, 64), columns=slice(0, 32)):
    """A mask that is white in these columns."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, columns] = 255
    Image.fromarray(pixels).save(path)


def clip_mask(path, shares):
    """A mask clip, lossless: frame i is white in the left `shares[i]` of it."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr0"
        for share in shares:
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[:, : round(64 * share)] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_latents_take_the_frames_together_as_wan_does():
    levels = np.stack([np.full((1, 2), value, np.float32) for value in (0.5, 0, 0, 0, 1, 1, 1, 1, 1)])
    assert to_latents(levels, inverted=False, least=0.0)[:, 0, 0].tolist() == [0.5, 0.25, 1.0]
    assert to_latents(levels, inverted=True, least=0.0)[:, 0, 0].tolist() == [0.5, 0.75, 0.0]
    least = to_latents(levels, inverted=False, least=0.2)[:, 0, 0]
    assert torch.allclose(least, torch.tensor([0.6, 0.4, 1.0]))
    assert to_latents(levels[:1], inverted=False, least=0.0).shape == (1, 1, 2)


@pytest.mark.parametrize(("latent_format", "pixels"), [("wan2.1", 8), ("wan2.2", 16)])
def test_each_latent_has_the_mean_of_its_pixels(folder, make, latent_format, pixels):
    make.image(folder / "a.png", (64, 64))
    levels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    (folder / "masks").mkdir()
    Image.fromarray(levels).save(folder / "masks" / "a.png")
    (sample,) = scan(folder, mask_folder="masks").samples
    by_hand = (levels / 255).reshape(64 // pixels, pixels, 64 // pixels, pixels).mean((1, 3))
    assert np.abs(read_mask(sample, latent_format)[0].numpy() - by_hand).max() < 1e-5


def test_a_clip_as_mask_goes_frame_by_frame(folder, make):
    make.clip(folder / "a.mp4", 9, size=(64, 64))
    clip_mask(folder / "masks" / "a.mkv", (1, 0, 0.5, 0.5, 1, 1, 1, 0, 0))
    (sample,) = scan(folder, num_frames=9, mask_folder="masks").samples
    means = read_mask(sample, "wan2.1").mean((1, 2))
    assert torch.allclose(means, torch.tensor([1.0, 0.5, 0.5]))
    (second,) = scan(folder, num_frames=5, frame_sampling="even", mask_folder="masks").samples
    assert second.frame_indices == (0, 2, 4, 6, 8)  # the mask of each frame that is taken
    assert torch.allclose(read_mask(second, "wan2.1").mean((1, 2)), torch.tensor([1.0, (0.5 + 1 + 1 + 0) / 4]))


def test_the_mask_is_cut_and_flipped_with_the_pixels(folder):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 96:] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    half(folder / "masks" / "a.png", (96, 32), slice(48, 96))  # of half the size: the same part of the picture
    found = scan(folder, mask_folder="masks", flip_x=True, crop="center").samples
    for sample in found:
        bright = read_frames(sample)[0, ..., 0].float().reshape(8, 8, 8, 8).mean((1, 3)) / 255
        assert (read_mask(sample, "wan2.1")[0] - bright).abs().max() < 0.02
    assert read_mask(found[0], "wan2.1")[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert read_mask(found[1], "wan2.1")[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    (right,) = scan(folder, mask_folder="masks", crop="right").samples
    assert read_mask(right, "wan2.1").min() == 1


def test_masks_beside_the_files_are_not_trained_on(folder, make):
    for name in ("a.png", "b.png"):
        make.image(folder / name, (64, 64))
    half(folder / "a-masklabel.png")
    dataset = scan(folder, mask_suffix="-masklabel")
    assert [sample.file.name for sample in dataset.samples] == ["a.png", "b.png"]
    assert dataset.samples[0].mask.file.name == "a-masklabel.png"
    assert dataset.samples[1].mask is None
    assert told(dataset) == ["b.png: note: it has no mask: its whole picture counts"]
    unset = scan(folder)
    assert len(unset.samples) == 3
    assert told(unset) == [
        "a-masklabel.png: note: it looks like the mask of a.png, and is trained on as a picture; set mask_suffix to -masklabel"
    ]


def test_masks_in_a_folder_by_name_whatever_the_ending(folder, make, tmp_path):
    (folder / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        make.image(folder / name, (64, 64))
    half(tmp_path / "masks" / "a.webp")
    half(tmp_path / "masks" / "sub" / "b.png")
    half(tmp_path / "masks" / "c.bmp")
    dataset = scan(folder, mask_folder=str(tmp_path / "masks"))
    assert [s.mask.file.path for s in dataset.samples] == [
        str(tmp_path / "masks" / name) for name in ("a.webp", "sub/b.png", "c.bmp")
    ]


@pytest.mark.parametrize(
    ("file", "beside", "within"),
    [
        ("Clip.PNG", "clip_Mask.png", "CLIP.png"),
        ("Mu\u0308ller.png", "M\u00fcller_mask.png", "M\u00fcller.webp"),
        ("take.final.png", "take.final_mask.png", "take.final.png"),
        ("take.png", "take.png_mask.png", "take.png.png"),
    ],
)
def test_masks_are_found_by_names_as_people_write_them(folder, make, tmp_path, file, beside, within):
    make.image(folder / "x.png", (64, 64))
    (folder / "x.png").rename(folder / file)
    half(tmp_path / "masks" / within)
    (of_folder,) = scan(folder, mask_folder=str(tmp_path / "masks")).samples
    assert of_folder.mask.file.name == within
    half(folder / beside)
    dataset = scan(folder, mask_suffix="_mask")
    assert [(sample.file.name, sample.mask.file.name) for sample in dataset.samples] == [(file, beside)]
    assert not told(dataset)


def test_masks_of_no_file_are_told_with_the_name_that_they_should_have(folder, make, tmp_path):
    make.image(folder / "a.png", (64, 64))
    half(folder / "b_mask.png")
    half(tmp_path / "masks" / "c.png")
    dataset = scan(folder, mask_folder=str(tmp_path / "masks"), mask_suffix="_mask")
    assert told(dataset) == [
        "a.png: note: it has no mask: its whole picture counts",
        "b_mask.png: note: its name ends in _mask, but no file has the rest of it as its name: it is trained on, and is no "
        "mask",
        "b_mask.png: note: it has no mask: its whole picture counts",
        "masks/c.png: note: not used: no file of the dataset is left for it; a mask has the name of its clip or picture, "
        "such as a.png for "
        "a.png",
    ]


def test_what_is_transparent_does_not_count(folder, make):
    pixels = np.full((64, 64, 4), 100, np.uint8)
    pixels[..., 3] = 0
    pixels[:, 48:, 3] = 255
    Image.fromarray(pixels, "RGBA").save(folder / "a.png")
    make.image(folder / "b.png", (64, 64))
    dataset = scan(folder, alpha_mask=True, mask_least=0.1)
    mask = read_mask(dataset.samples[0], "wan2.1")
    assert torch.allclose(mask[0, 0], torch.tensor([0.1] * 6 + [1.0] * 2))
    assert dataset.samples[1].mask is None
    assert told(dataset) == ["b.png: note: it has no mask: its whole picture counts"]


def test_a_mask_that_does_not_fit_is_told(folder, make):
    make.clip(folder / "a.mp4", 9, size=(64, 64))
    clip_mask(folder / "masks" / "a.mkv", (1, 0, 0.5))
    make.image(folder / "b.png", (64, 64))
    (folder / "masks" / "b.png").write_bytes(b"no picture")
    make.image(folder / "c.png", (64, 64))
    half(folder / "masks" / "c.png", (64, 32))
    dataset = scan(folder, mask_folder="masks")
    assert [sample.mask is None for sample in dataset.samples] == [True, True, False]
    found = [note for note in told(dataset) if "mask" in note]
    assert found[0] == (
        "a.mp4: note: its mask a.mkv is not used: it has 3 frames, and the clip has 9; its whole picture counts"
    )
    assert found[1].startswith("b.png: note: its mask b.png is not used: the image cannot be decoded")
    assert found[2] == "c.png: note: its mask c.png is 64x32, and is stretched to 64x64"


def test_folders_that_cannot_hold_masks(folder, make, tmp_path):
    make.image(folder / "a.png", (64, 64))
    with pytest.raises(DatasetError, match="mask_folder is 'gone', which is no folder"):
        scan(folder, mask_folder="gone")
    for holds_all in (".", "..", str(tmp_path.anchor)):
        with pytest.raises(DatasetError, match=f"which holds the dataset {folder} itself"):
            scan(folder, mask_folder=holds_all)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DatasetError, match="which lies outside the dataset folders"):
        scan(folder, mask_folder="../elsewhere", within=[])
    half(tmp_path / "elsewhere" / "a.png")
    assert scan(folder, mask_folder="../elsewhere").samples[0].mask is not None


def test_a_mask_that_changed_since_the_scan_is_named(folder, make):
    make.image(folder / "a.png", (64, 64))
    half(folder / "masks" / "a.png")
    (sample,) = scan(folder, mask_folder="masks").samples
    half(folder / "masks" / "a.png", columns=slice(0, 8))
    with pytest.raises(DatasetError, match=r"masks.a\.png cannot be used: it was changed since the folder was scanned"):
        read_mask(sample, "wan2.1")


def test_masks_lie_in_the_store_and_are_made_once(folder, make, tmp_path):
    make.clip(folder / "a.mp4", 5, size=(64, 64))
    make.clip(folder / "b.mp4", 5, size=(64, 64), picture=np.zeros((64, 64, 3), np.uint8))
    half(tmp_path / "masks" / "a.png")
    store, vae = Store(tmp_path / "cache"), PoolVAE()
    cache, notes = cache_latents(scan(folder, mask_folder="../masks"), vae, store)
    masked, plain = cache.entries
    assert notes == []
    assert (plain.mask_path, plain.mask_key) == ("", "")
    assert masked.mask_path == str(store.path("masks", masked.mask_key))
    mask = store.load("masks", masked.mask_key)["mask"]
    assert (mask.shape, mask.dtype) == ((2, 8, 8), torch.float32)
    assert mask[:, :, :4].min() == 1
    assert mask[:, :, 4:].max() == 0
    without, _ = cache_latents(scan(folder), vae, store)
    assert [e.key for e in without.entries] == [e.key for e in cache.entries]  # latents know nothing of masks
    assert without.digest != cache.digest
    least, _ = cache_latents(scan(folder, mask_folder="../masks", mask_least=0.5), vae, store)
    assert least.entries[0].mask_key != masked.mask_key
    assert vae.calls == 2
    store.path("masks", masked.mask_key).write_bytes(b"damaged")
    again, _ = cache_latents(scan(folder, mask_folder="../masks"), vae, store)
    assert again == cache
    assert torch.equal(store.load("masks", masked.mask_key)["mask"], mask)


def test_a_mask_that_is_bad_by_then_leaves_the_sample_out(folder, make, tmp_path):
    for name in ("a.png", "b.png"):
        make.image(folder / name, (64, 64))
    half(folder / "masks" / "a.png")
    dataset = scan(folder, mask_folder="masks")
    (folder / "masks" / "a.png").unlink()
    cache, notes = cache_latents(dataset, PoolVAE(), Store(tmp_path / "cache"))
    assert [entry.name for entry in cache.entries] == ["b.png"]
    assert "cannot be used" in notes[0].reason
