"""Interlaced clips lose their combs, and nothing else of them changes."""

from dataclasses import replace

import av
import numpy as np
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.settings.dataset import DatasetOptions


def write(path, *, interlaced=True, num_frames=20, gop=5):
    """A bar that walks 6 pixels a frame, 3 a half picture."""
    params = "bff=1:qp=0" if interlaced else "qp=0"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"x264-params": params})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 192, 64, "yuv420p", gop
        for index in range(num_frames):
            pixels = np.zeros((64, 192, 3), np.uint8)
            for half in (0, 1):
                left = 8 + 6 * index + 3 * (1 - half)  # the odd lines come first, as x264 tags it
                pixels[half::2, left : left + 24] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def scan(folder, **options):
    shared = {"width": 192, "height": 64, "num_frames": 9, "default_caption": "x"}
    return scan_folder(folder, DatasetOptions(**{**shared, **options}))


def combs(frames):
    """How much each line differs from the mean of the two around it, by frame."""
    grey = frames.float().mean(-1)
    return (grey[:, 1:-1] - (grey[:, :-2] + grey[:, 2:]) / 2).abs().mean((1, 2))


def bar(frames):
    """Where the bar's middle is, by frame."""
    grey = frames.float().mean((1, 3))
    places = np.arange(grey.shape[1])
    return np.array([float((row.numpy() * places).sum() / row.sum()) for row in grey])


def test_combs_are_gone_and_the_clip_says_so(folder):
    write(folder / "a.mp4")
    write(folder / "b.mp4", interlaced=False)  # the same pictures without the flag: nobody can know
    dataset = scan(folder)
    clip, plain = (read_frames(sample) for sample in dataset.samples)
    assert combs(plain).min() > 5
    assert combs(clip).max() < combs(plain).min() / 4
    told = [str(note) for note in dataset.notes if note.action == "note"]
    assert told == ["a.mp4: note: it is interlaced: its frames are deinterlaced (bwdif)"]


def test_each_frame_stays_at_its_time(folder):
    write(folder / "a.mp4")
    found = scan(folder, frame_sampling="chunk").samples
    assert [sample.frame_indices[0] for sample in found] == [0, 9]
    for sample in found:
        expected = [8 + 6 * index + 11.5 for index in sample.frame_indices]  # of the first half picture
        assert np.abs(bar(read_frames(sample)) - expected).max() < 2


def test_the_last_frame_of_a_clip_comes_out_too(folder):
    write(folder / "a.mp4", num_frames=9)
    (sample,) = scan(folder).samples
    assert read_frames(sample).shape[0] == 9
    assert combs(read_frames(sample))[-1] < 2


def test_the_key_of_an_interlaced_clip_alone_is_another(folder):
    write(folder / "a.mp4")
    (sample,) = scan(folder).samples
    assert sample.file.read_as == ("interlaced",)
    assert sample.content_key != replace(sample, file=replace(sample.file, read_as=())).content_key
