"""What FFmpeg's own decoders leave out, and streams that are no clip."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from av import stream as av_stream
from av.codec import codecs_available
from wan_train.core.data import streams
from wan_train.core.data.clips import probe_clip
from wan_train.core.data.decode import read_frames, read_mask
from wan_train.core.data.scan import scan_folder
from wan_train.core.settings.dataset import DatasetOptions

pytestmark = pytest.mark.skipif("libvpx-vp9" not in codecs_available, reason="this PyAV has no libvpx")


def write(path, num_frames=20, gop=6):
    """VP9: the left half is transparent with green hidden behind it, the right half is of a grey that grows."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=16, options={"lossless": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuva420p", gop
        stream.metadata["alpha_mode"] = "1"
        for index in range(num_frames):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[:, :32, 1] = 255
            pixels[:, 32:] = (*(3 * [20 + 5 * index]), 255)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="yuva420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def scan(folder, **options):
    shared = {"width": 64, "height": 64, "num_frames": 5, "default_caption": "x"}
    return scan_folder(folder, DatasetOptions(**shared, **options))


def test_what_is_transparent_in_vp9_is_white(folder):
    write(folder / "a.webm")
    with av.open(str(folder / "a.webm")) as container:
        assert next(container.decode(video=0)).format.name == "yuv420p"  # FFmpeg's own decoder shows the green
    dataset = scan(folder, frame_sampling="chunk")
    assert [sample.frame_indices[0] for sample in dataset.samples] == [0, 5, 10, 15]
    for sample in dataset.samples:
        frames = read_frames(sample).float()
        assert (frames[:, 8:-8, 2:28] > 252).all()
        grey = frames[:, 8:-8, 36:-4].mean((1, 2, 3))
        assert (grey - torch.tensor([20.0 + 5 * index for index in sample.frame_indices])).abs().max() <= 2
    notes = [str(note) for note in dataset.notes]
    assert notes == ["a.webm: note: it is partly transparent: it is laid on white"]


def test_only_such_a_clip_has_another_key(folder, make):
    write(folder / "a.webm")
    make.clip(folder / "b.webm", 9, codec="libvpx-vp9")
    alpha, plain = scan(folder).samples
    assert (alpha.file.read_as, plain.file.read_as) == (("vpx alpha",), ())
    assert alpha.content_key != replace(alpha, file=replace(alpha.file, read_as=())).content_key


def test_the_alpha_of_a_clip_can_be_its_mask(folder):
    write(folder / "a.webm")
    (sample,) = scan(folder, alpha_mask=True).samples
    mask = read_mask(sample, "wan2.1")
    assert mask.shape == (2, 8, 8)
    assert mask[..., :4].max() < 0.01
    assert mask[..., 4:].min() > 0.99


def test_without_libvpx_it_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.webm")
    monkeypatch.setattr(streams, "codecs_available", codecs_available - {"libvpx-vp9"})
    found = probe_clip(path)
    assert found.read_as == ()
    assert "which can't be read here" in found.remarks[0]


def test_the_cover_of_a_clip_is_passed_over(tmp_path, make):
    cover = make.image(tmp_path / "cover.png", (200, 200)).read_bytes()
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = 200, 200, "rgb24"
        picture.disposition = av_stream.Disposition.attached_pic
        clip = container.add_stream("libx264", rate=16)
        clip.width, clip.height, clip.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(clip.encode(frame))
        container.mux(clip.encode())
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
        container.mux(packet)
    found = probe_clip(path)
    assert (found.size, len(found.times_us)) == ((64, 48), 5)
