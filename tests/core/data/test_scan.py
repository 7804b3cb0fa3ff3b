import json
import os
import struct
import threading

import pytest
from wan_train.core.data import pictures
from wan_train.core.data import scan as scan_module
from wan_train.core.data.folder import natural_key
from wan_train.core.data.scan import NotOpenedError, scan_folder
from wan_train.core.errors import ConfigError, DatasetError
from wan_train.core.settings.dataset import DatasetOptions

SMALL = {"width": 64, "height": 48, "num_frames": 9}


def scan(folder, *, index_path=None, progress=None, check=None, **options):
    options = DatasetOptions(**{**SMALL, **options})
    return scan_folder(folder, options, index_path=index_path, progress=progress, check=check)


def caption(folder, stem, text="a caption"):
    (folder / f"{stem}.txt").write_text(text, encoding="utf-8")


def notes(dataset):
    return [str(note) for note in dataset.notes]


def test_images_and_clips_in_natural_order_with_captions(folder, make):
    (folder / "sub").mkdir()
    for name in ("clip_10", "clip_2", "sub/clip_1"):
        make.clip(folder / f"{name}.mp4", 9)
        caption(folder, name, f"caption of {name}")
    make.image(folder / "Clip_3.PNG")
    caption(folder, "Clip_3", "  an\n image ")
    dataset = scan(folder)
    assert [s.file.name for s in dataset.samples] == ["clip_2.mp4", "Clip_3.PNG", "clip_10.mp4", "sub/clip_1.mp4"]
    assert dataset.captions == ("caption of clip_2", "an image", "caption of clip_10", "caption of sub/clip_1")
    assert dataset.notes == ()
    clip, image = dataset.samples[0], dataset.samples[1]
    assert clip.file.kind == "video"
    assert clip.frame_indices == tuple(range(9))
    assert clip.file.fps == 16
    assert image.file.kind == "image"
    assert image.frame_indices == (0,)
    assert image.file.fps == 0
    assert clip.file.path == str(folder / "clip_2.mp4")


def test_every_container_in_one_folder(folder, make):
    clips = {"a.mp4": "libx264", "b.mov": "libx264", "c.mkv": "libx264", "d.webm": "libvpx-vp9", "e.avi": "mpeg4"}
    for name, codec in clips.items():
        make.clip(folder / name, 10, codec=codec)
    for name in ("f.gif", "g.webp"):
        make.animation(folder / name, 10, delay_ms=50)
    for name in ("h.jpg", "i.jpeg", "j.bmp", "k.avif", "l.webp"):
        make.image(folder / name)
    dataset = scan(folder, default_caption="x", num_frames=5)
    assert [s.file.kind for s in dataset.samples] == ["video"] * 7 + ["image"] * 5


def test_natural_key_sorts_numbers_as_numbers():
    names = ["b", "a10", "a2", "A3", "a2b", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "a2", "a2b", "A3", "a10", "b"]


def test_hidden_files_are_ignored_and_unknown_ones_noted(folder, make):
    make.image(folder / "a.png")
    caption(folder, "a")
    for name in (".hidden.png", "Thumbs.db", ".DS_Store", "._a.png", "desktop.ini"):
        (folder / name).write_text("x")
    for name in ("__MACOSX", ".cache"):
        (folder / name).mkdir()
        make.image(folder / name / "b.png")
    (folder / "readme.md").write_text("x")
    caption(folder, "orphan")
    dataset = scan(folder)
    assert [s.file.name for s in dataset.samples] == ["a.png"]
    assert notes(dataset) == [
        "orphan.txt: note: ignored: a caption file without an image or clip",
        "readme.md: note: ignored: not an image or clip of a known kind",
    ]


def test_two_files_may_share_a_caption_but_it_is_told(folder, make):
    make.image(folder / "a.png")
    make.image(folder / "a.jpg", colour=(1, 2, 3))
    caption(folder, "a", "shared")
    dataset = scan(folder)
    assert [s.file.caption for s in dataset.samples] == ["shared", "shared"]
    assert notes(dataset) == ["a.png: note: shares the caption file a.txt with a.jpg"]


def test_a_caption_file_may_be_spelled_as_windows_and_the_mac_let_it(folder, make):
    """In another case, and with letters in the Mac's form; a file that is another one's by its very name is nobody else's."""
    make.image(folder / "Clip.PNG")
    if (folder / "clip.png").exists():
        pytest.skip("this disk takes both spellings for one file")
    for name in ("Mu\u0308ll", "dog", "DOG", "One"):
        make.image(folder / f"{name}.png")
    for stem in ("clip", "M\u00fcll", "dog", "ONE", "onE"):
        caption(folder, stem, f"of {stem}")
    dataset = scan(folder)
    captions = {sample.file.name: sample.file.caption for sample in dataset.samples}
    assert captions == {"Clip.PNG": "of clip", "Mu\u0308ll.png": "of M\u00fcll", "dog.png": "of dog"}
    told = {note.name: note.reason for note in dataset.notes}
    assert "clip.txt" not in told
    assert {"ONE.txt", "onE.txt", "DOG.png", "One.png"} <= set(told)


@pytest.mark.parametrize("extension", ["caption", ".CAPTION"])
def test_another_caption_extension(folder, make, extension):
    make.image(folder / "a.png")
    (folder / "a.Caption").write_text("x")
    assert scan(folder, caption_extension=extension).captions == ("x",)


def test_folders_that_cannot_be_scanned(tmp_path, folder):
    with pytest.raises(DatasetError, match="nowhere does not exist: check the path"):
        scan(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file is a file, not a folder"):
        scan(tmp_path / "file")
    with pytest.raises(DatasetError, match="holds no images or clips: put some there"):
        scan(folder)


def test_missing_captions_are_told_before_anything_is_probed(folder, make, monkeypatch):
    make.image(folder / "a.png")
    monkeypatch.setattr(scan_module, "probe_file", lambda *_: pytest.fail("probed"))
    with pytest.raises(DatasetError, match="no captions"):
        scan(folder)


def test_bad_files_are_skipped_with_a_note_or_refused(folder, make):
    make.clip(folder / "good.mp4", 9)
    make.cut(make.clip(folder / "bad.mp4", 9), 0.6)
    (folder / "worse.png").write_text("x")
    dataset = scan(folder, default_caption="x")
    assert [s.file.name for s in dataset.samples] == ["good.mp4"]
    assert [(n.name, n.action) for n in dataset.notes] == [("bad.mp4", "skipped"), ("worse.png", "skipped")]
    with pytest.raises(DatasetError, match=r"bad\.mp4 cannot be used: the file is cut off"):
        scan(folder, default_caption="x", bad_files="refuse")


def test_a_damaged_file_without_a_caption_has_one_note(folder, make):
    make.clip(folder / "good.mp4", 9)
    make.cut(make.clip(folder / "bad.mp4", 9), 0.6)
    (folder / "good.txt").write_text("a good clip")
    dataset = scan(folder, default_caption="x")
    assert [(note.name, note.action) for note in dataset.notes] == [("bad.mp4", "skipped")]


def test_a_picture_has_no_motion_to_follow(folder, make):
    make.image(folder / "a.png")
    make.clip(folder / "b.mp4", 9)
    notes = [str(note) for note in scan(folder, default_caption="x", crop="motion").notes if "motion" in note.reason]
    assert len(notes) == 1
    assert "a.png" in notes[0]
    assert not [note for note in scan(folder, default_caption="x", crop="top").notes if "motion" in note.reason]


def test_a_folder_of_bad_files_only_is_an_error(folder):
    (folder / "a.png").write_text("x")
    with pytest.raises(DatasetError, match=r"The only file in .* cannot be used: a\.png: skipped"):
        scan(folder, default_caption="x")


def test_short_clips(folder, make):
    make.clip(folder / "a.mp4", 7)
    make.clip(folder / "b.mp4", 9)
    dataset = scan(folder, default_caption="x")
    assert [len(s.frame_indices) for s in dataset.samples] == [5, 9]
    assert notes(dataset) == ["a.mp4: shortened: 7 frames at 16 fps, fewer than num_frames 9: the first 5 are used"]
    dataset = scan(folder, default_caption="x", short_clips="skip")
    assert [s.name for s in dataset.samples] == ["b.mp4[0:9]"]
    assert [n.action for n in dataset.notes] == ["skipped"]
    with pytest.raises(DatasetError, match=r"a\.mp4 is too short: 7 frames at 16 fps, .* lower num_frames"):
        scan(folder, default_caption="x", short_clips="refuse")


def test_large_crops_are_noted_small_ones_are_not(folder, make):
    make.image(folder / "a.png", (65, 48))
    make.image(folder / "b.png", (96, 48))
    dataset = scan(folder, default_caption="x", aspect_buckets=False)
    assert notes(dataset) == ["b.png: cropped: 33.3% of its width is cut off (96x48 to 64x48)"]


def test_a_resampled_clip_is_noted_once(folder, make):
    make.clip(folder / "a.mp4", 90, rate=30)
    dataset = scan(folder, default_caption="x", frame_sampling="uniform", windows_per_clip=3)
    assert len(dataset.samples) == 3
    assert notes(dataset) == ["a.mp4: resampled: from 30 to 16 frames per second"]


def test_repeats_and_held_out_samples(folder, make):
    for i in range(6):
        make.image(folder / f"{i}.png")
    dataset = scan(folder, default_caption="x", repeats=3, held_out=2)
    assert [s.file.name for s in dataset.samples if s.held_out] == ["1.png", "4.png"]
    assert {(s.repeats, s.held_out) for s in dataset.samples} == {(1, True), (3, False)}
    with pytest.raises(DatasetError, match=r"held_out is 6, but there are only 6 samples: .* use 5 or fewer"):
        scan(folder, default_caption="x", held_out=6)


def test_a_clip_divided_by_held_out_is_noted(folder, make):
    make.clip(folder / "a.mp4", 27)
    dataset = scan(folder, default_caption="x", frame_sampling="chunk", held_out=1)
    assert [s.held_out for s in dataset.samples] == [False, False, True]
    assert notes(dataset) == ["a.mp4: note: its last window is held out, of 3; the others are trained on"]


def test_a_second_scan_reads_no_media(folder, tmp_path, make, monkeypatch):
    make.clip(folder / "a.mp4", 9)
    make.cut(make.image(folder / "b.png"), 0.5)
    index_path = tmp_path / "cache" / "index.json"
    first = scan(folder, index_path=index_path, default_caption="x")
    probed = []
    real = scan_module.probe_file
    monkeypatch.setattr(scan_module, "probe_file", lambda path, stop: probed.append(path.name) or real(path, stop))
    assert scan(folder, index_path=index_path, default_caption="x") == first
    assert probed == []
    make.clip(folder / "a.mp4", 13)
    changed = scan(folder, index_path=index_path, default_caption="x")
    assert probed == ["a.mp4"]
    assert changed.samples[0].file.num_frames == 13
    assert changed.digest != first.digest


def test_what_is_known_is_scanned_without_opening_a_file(folder, tmp_path, make, monkeypatch):
    make.image(folder / "a.png")
    index_path = tmp_path / "index.json"
    options = DatasetOptions(width=64, height=64, num_frames=1, default_caption="x")

    def known():
        return scan_folder(folder, options, index_path=index_path, known_only=True)

    with pytest.raises(NotOpenedError, match=r"1 of 1 files in .* have not been opened yet"):
        known()
    first = scan_folder(folder, options, index_path=index_path)
    monkeypatch.setattr(scan_module, "probe_file", None)  # whoever opens a file fails
    assert known() == first
    make.image(folder / "b.png")
    with pytest.raises(NotOpenedError, match="1 of 2 files"):
        known()


def test_the_index_may_lie_in_the_folder_without_a_note(folder, make):
    make.image(folder / "a.png")
    for _ in range(2):
        assert scan(folder, index_path=folder / "index.json", default_caption="x").notes == ()


def test_progress_counts_files_and_may_abort_without_losing_the_work(folder, tmp_path, make):
    for i in range(4):
        make.image(folder / f"{i}.png")
    calls = []
    scan(folder, default_caption="x", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(folder, index_path=tmp_path / "index.json", default_caption="x", progress=stop)
    assert len(json.loads((tmp_path / "index.json").read_text())["files"]) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_linked_folders_are_followed_but_never_in_circles(folder, tmp_path, make):
    (tmp_path / "other").mkdir()
    make.image(tmp_path / "other" / "a.png")
    (folder / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "other" / "loop").symlink_to(folder, target_is_directory=True)
    assert [s.file.name for s in scan(folder, default_caption="x").samples] == ["link/a.png"]


def test_the_digest_ignores_names_and_place(folder, tmp_path, make):
    make.image(folder / "a.png")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "renamed.png").write_bytes((folder / "a.png").read_bytes())
    assert scan(folder, default_caption="x").digest == scan(other, default_caption="x").digest


@pytest.mark.parametrize("ending", ["", ".", "..", "../x", "a/b", ".a.b", "\0", "x" * 5000])
def test_an_ending_that_no_caption_file_has(ending):
    with pytest.raises(ConfigError, match="caption_extension is '"):
        DatasetOptions(caption_extension=ending)


def write_gif(path, width, height, frames):
    """Frames of one pixel."""
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0"
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame * frames + b";")
    return path


def test_a_clip_of_an_unknown_codec_is_one_bad_file_among_others(folder, make):
    make.clip(folder / "good.mp4")
    path = make.clip(folder / "bad.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    dataset = scan(folder, default_caption="x")
    assert [s.file.name for s in dataset.samples] == ["good.mp4"]
    assert notes(dataset)[0] == "bad.mp4: skipped: its video codec is not known here; convert it to H.264"
    with pytest.raises(DatasetError, match=r"bad\.mp4 cannot be used: its video codec is not known"):
        scan(folder, default_caption="x", bad_files="refuse")


def test_small_files_that_would_never_end_are_told_and_not_decoded(folder, make):
    make.image(folder / "good.png")
    write_gif(folder / "huge.gif", 9000, 9000, 20_000)
    write_gif(folder / "long.gif", 8000, 8000, 400)
    assert notes(scan(folder, default_caption="x")) == [
        "huge.gif: skipped: it is 9000x9000 pixels, and 67 million are the limit; scale it down",
        "long.gif: skipped: 400 frames of 8000x8000 would have to be decoded, and the limit for one file is 20 billion pixels; "
        "cut it into shorter files, or scale it down",
    ]


def test_a_stop_acts_in_the_middle_of_a_file(folder, monkeypatch):
    write_gif(folder / "long.gif", 2000, 2000, 4000)
    shown, asked = [], threading.Event()
    real = pictures._show

    def show(image, index, work):
        shown.append(index)
        asked.wait(60)  # the first frame is not done before `check` was called
        real(image, index, work)

    def check():
        if shown:
            asked.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "_show", show)

    with pytest.raises(KeyboardInterrupt):
        scan(folder, default_caption="x", check=check)
    for thread in threading.enumerate():
        if thread.name.startswith("wan-probe"):
            thread.join()
    assert len(shown) < 4000


def test_times_that_no_clip_has_are_told(folder, make):
    make.image(folder / "good.png")
    make.clip(folder / "years.mkv", 3, pts_ms=[0, 60, 90_000_000])
    make.clip(folder / "day.mkv", 3, pts_ms=[0, 60, 80_000_000])
    assert notes(scan(folder, default_caption="x", fps=240.0, num_frames=1)) == [
        "day.mkv: skipped: it runs for 22.2 hours, and at 240 fps 5.79 are the limit: cut it, or lower fps",
        "years.mkv: skipped: its frames span 25 hours, and 24 are the limit for one file: its timestamps are damaged, so "
        "convert it again, or cut it into shorter files",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_and_links_to_devices_are_never_opened(folder, make):
    make.image(folder / "good.png")
    os.mkfifo(folder / "a.mp4")
    os.mkfifo(folder / "b.txt")
    make.image(folder / "b.png")
    (folder / "c.png").symlink_to("/dev/zero")
    (folder / "d.png").symlink_to(folder / "gone")
    (folder / "e.png").symlink_to(folder / "e.png")
    found = notes(scan(folder, default_caption="x"))
    assert found[0] == "a.mp4: skipped: it is not a plain file but a folder, pipe or device"
    assert found[1].startswith("b.png: note: its caption file b.txt cannot be used: it is not a plain file")
    assert found[2] == "c.png: skipped: it is not a plain file but a folder, pipe or device"
    assert [note.split(":")[0] for note in found[3:]] == ["d.png", "e.png"]
    assert all("it cannot be read (" in note for note in found[3:])


def test_a_name_that_is_not_utf8_is_told_in_letters_that_can_be_printed(folder, make):
    make.image(folder / "good.png")
    try:
        make.image(folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this disk takes no such name")
    (found,) = notes(scan(folder, default_caption="x"))
    assert found.startswith(r"caf\xe9.png: skipped: its name is not UTF-8")


def test_folders_in_folders_without_end(folder, make):
    make.image(folder / "a.png")
    folders = [folder / "d"]
    for _ in range(1100):  # more than Python calls functions inside of each other
        folders[-1].mkdir()
        folders.append(folders[-1] / "d")
    try:
        assert len(scan(folder, default_caption="x").samples) == 1
    finally:
        for made in reversed(folders[:-1]):
            made.rmdir()


def test_files_that_change_places_are_read_again(folder, tmp_path, make):
    one, two = make.image(folder / "1.bmp", colour=(9, 9, 9)), make.image(folder / "2.bmp", colour=(99, 99, 99))
    for path in (one, two):
        os.utime(path, (1_000_000, 1_000_000))
    first = scan(folder, index_path=tmp_path / "index.json", default_caption="x").samples
    one.rename(folder / "swap")
    two.rename(one)
    (folder / "swap").rename(two)
    second = scan(folder, index_path=tmp_path / "index.json", default_caption="x").samples
    assert [s.file.sha256 for s in second] == [s.file.sha256 for s in reversed(first)]


def test_caption_files_that_are_not_read_are_told_once(folder, make):
    for name in ("a_dog", "b_cat"):
        make.image(folder / f"{name}.png", colour=(len(name), ord(name[0]), 9))
        (folder / f"{name}.txt").write_text("not this")
    dataset = scan_folder(folder, DatasetOptions(caption_source="filename", width=64, height=48))
    assert [s.file.caption for s in dataset.samples] == ["a dog", "b cat"]
    assert [str(note) for note in dataset.notes] == [
        "a_dog.txt: note: ignored (and 1 more): caption files are not read, as caption_source is filename"
    ]


def test_further_captions_are_in_the_content_and_change_no_pixels(folder, make):
    make.image(folder / "a.png")
    (folder / "a.txt").write_text("dog, grass")
    plain = scan_folder(folder, DatasetOptions())
    further = scan_folder(folder, DatasetOptions(shuffle_tags=True))
    assert further.captions == ("dog, grass", "grass, dog")
    assert [s.content_key for s in plain.samples] == [s.content_key for s in further.samples]
    assert plain.digest != further.digest


def test_an_error_about_captions_names_the_folder(folder, make):
    make.image(folder / "a.png")
    with pytest.raises(DatasetError) as error:
        scan(folder)
    assert str(error.value).startswith(f"{folder}: no captions: the only file has none")


def test_clips_cannot_be_caption_files(folder, make):
    make.image(folder / "a.png")
    with pytest.raises(DatasetError, match=r"caption_extension is PNG, which is the ending of images or clips"):
        scan(folder, caption_extension="PNG", trigger_word="ohwx")
