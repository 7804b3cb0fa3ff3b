"""The events of a look at 24 mixed files: every sample, every trouble, and what each size costs."""

import json

import numpy as np
import pytest
from PIL import Image
from wan_train.core.data.decode import read_frames
from wan_train.core.data.join import join
from wan_train.core.data.points import Points, write_points
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import DatasetError
from wan_train.core.look.costs import bucket_costs
from wan_train.core.look.masked import shaded
from wan_train.core.look.strips import StripStore, make_strip
from wan_train.core.look.view import SOURCE_FRAMES, Looker, exact_frame, source_strip
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.data.test_masks import clip_mask
from wan_train.tests.core.look.material import moving, textured, write, write_mixed

OPTIONS = DatasetOptions(width=192, height=192, num_frames=17, trigger_word="ohwx", held_out=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return scan_folder(write_mixed(tmp_path_factory.mktemp("mixed") / "set"), OPTIONS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return StripStore(tmp_path_factory.mktemp("strips"))


@pytest.fixture(scope="module")
def events(dataset, store):
    return list(Looker(store=store).look(dataset))


def badges(events):
    """Kinds of troubles by file."""
    samples = events[0]["samples"]
    found = {sample["name"]: {badge["kind"] for badge in sample["badges"]} for sample in samples}
    for event in events[1:]:
        for item in event.get("items", []):
            found[samples[item["i"]]["name"]] |= {badge["kind"] for badge in item["badges"]}
    return found


def test_each_trouble_is_found_and_no_other(events):
    found = badges(events)
    assert {name: kinds for name, kinds in found.items() if kinds} == {
        "a_cut.mp4": {"cut"},
        "b_bars.mp4": {"black bars"},
        "c_still.mp4": {"still"},
        "d_blurred.mp4": {"blurred"},
        "e_slow.mp4": {"repeated frames"},
        "f_twin_1.mp4": {"near duplicate"},
        "f_twin_2.mp4": {"near duplicate"},
        "g_long.mp4": {"too long"},
        "h_none.png": {"no caption"},
        "i_same_1.png": {"same caption"},
        "i_same_2.png": {"same caption"},
        "j_wide.png": {"no trigger", "enlarged"},
    }
    assert len(found) == 23  # the broken one is no sample
    assert [left["name"] for left in events[0]["left"]] == ["k_broken.mp4"]


def test_every_sample_is_seen_once(events, dataset):
    seen = [item["i"] for event in events if event["event"] == "seen" for item in event["items"]]
    assert sorted(seen) == list(range(len(dataset.samples)))
    assert [event["event"] for event in events[-2:]] == ["duplicates", "done"]
    json.dumps(events)  # all of it can be sent


def test_the_second_look_reads_no_file(dataset, store, events, monkeypatch):
    monkeypatch.setattr("wan_train.core.look.view.read_frames", None)
    again = list(Looker(store=store).look(dataset))
    assert badges(again) == badges(events)
    assert [event["event"] for event in again] == ["dataset", "seen", "duplicates", "done"]


def test_a_damaged_strip_is_made_anew(dataset, store, events):
    sample = dataset.samples[0]
    key = store.key(sample)
    path = store.root / f"{key}.json"
    before = path.read_bytes()
    path.write_bytes(before[:-20])
    assert store.get(key) is None
    store.make(key, read_frames(sample).numpy())
    assert path.read_bytes() == before


def test_a_file_that_is_gone_is_told_and_the_others_are_seen(tmp_path):
    folder = tmp_path / "set"
    write(folder, "a.png", textured(1), "a")
    write(folder, "b.png", textured(1, 1), "b")
    found = scan_folder(folder, DatasetOptions(width=64, height=64))
    (folder / "a.png").unlink()
    told = list(Looker(store=StripStore(tmp_path / "strips")).look(found))
    assert badges(told) == {"a.png": {"unreadable"}, "b.png": set()}


def test_it_can_be_stopped_between_samples(dataset, tmp_path):
    class StoppedError(Exception):
        pass

    def check():
        raise StoppedError

    running = Looker(store=StripStore(tmp_path)).look(dataset, check)
    assert next(running)["event"] == "dataset"
    with pytest.raises(StoppedError):
        list(running)


def test_a_strip_holds_each_frame_in_its_place(tmp_path):
    frames = np.stack([np.full((120, 200, 3), 10 * i, np.uint8) for i in range(17)])
    data, strip = make_strip(frames, side=100)
    assert (strip.count, strip.columns, strip.width, strip.height) == (17, 5, 100, 60)
    (tmp_path / "strip.webp").write_bytes(data)
    sheet = np.asarray(Image.open(tmp_path / "strip.webp").convert("RGB")).astype(int)
    assert sheet.shape == (4 * 60, 5 * 100, 3)
    for index in range(17):
        y, x = index // 5 * 60 + 30, index % 5 * 100 + 50
        assert abs(sheet[y, x].mean() - 10 * index) <= 3


def test_long_clips_make_no_endless_strips():
    data, strip = make_strip(np.zeros((601, 104, 208, 3), np.uint8))
    assert strip.width * strip.height * strip.count <= 6_200_000
    assert len(data) < 200_000


def test_tokens_and_shares_by_hand(dataset):
    rows = {(row.width, row.height, row.frames): row for row in bucket_costs(dataset.samples, "wan2.1")}
    clip = rows[192, 192, 17]
    assert clip.latent == (5, 24, 24)
    assert clip.tokens == 5 * 12 * 12
    picture = rows[192, 192, 1]
    assert picture.tokens == 144
    trained = [s for s in dataset.samples if not s.held_out]
    total = sum((len(s.frame_indices) + 3) // 4 * (s.width // 16) * (s.height // 16) for s in trained)
    assert clip.share_of_tokens == pytest.approx(clip.samples * 720 / total)
    assert sum(row.share_of_tokens for row in rows.values()) == pytest.approx(1)
    assert sum(row.held_out for row in rows.values()) == 1
    assert bucket_costs(dataset.samples, "wan2.2")[0].latent == (5, 12, 12)


def test_the_exact_frame_is_what_training_reads(dataset, tmp_path):
    sample = next(s for s in dataset.samples if s.file.name == "a_cut.mp4")
    (tmp_path / "frame.webp").write_bytes(exact_frame(sample, 12))
    shown = np.asarray(Image.open(tmp_path / "frame.webp").convert("RGB")).astype(int)
    read = read_frames(sample)[12].numpy().astype(int)
    assert shown.shape == read.shape
    assert np.abs(shown - read).mean() < 3
    assert np.abs(shown - read_frames(sample)[0].numpy()).mean() > 20
    with pytest.raises(DatasetError, match="no frame 17"):
        exact_frame(sample, 17)


def test_the_exact_frame_of_a_cut_that_follows_motion_is_that_of_the_whole_sample(tmp_path):
    wide = np.full((9, 96, 288, 3), 90, np.uint8)
    for index in range(9):
        wide[index, 20 + index : 60 + index, 220:260] = 250  # it moves at the right
    folder = tmp_path / "set"
    write(folder, "a.mp4", wide, "a")
    options = DatasetOptions(width=96, height=96, num_frames=9, crop="motion", aspect_buckets=False)
    (sample,) = scan_folder(folder, options).samples
    assert sample.follows_motion
    (tmp_path / "frame.webp").write_bytes(exact_frame(sample, 4))
    shown = np.asarray(Image.open(tmp_path / "frame.webp").convert("RGB")).astype(int)
    assert np.abs(shown - read_frames(sample)[4].numpy()).mean() < 4
    assert source_strip(sample, 0)[1]["width"] == 288  # the file as it is


def test_source_frames_are_all_of_the_file_also_those_outside_the_points(tmp_path):
    folder = tmp_path / "set"
    path = write(folder, "a.mp4", moving(frames=41), "a")
    write_points(path, Points(in_frame=20, out_frame=41))
    (sample,) = scan_folder(folder, DatasetOptions(width=96, height=96, num_frames=17)).samples
    assert sample.frame_indices[0] == 20
    assert source_strip(sample, 0)[1]["count"] == SOURCE_FRAMES
    assert source_strip(sample, 32)[1] == {"count": 9, "columns": 3, "width": 192, "height": 192}
    with pytest.raises(DatasetError, match="no frame 64"):
        source_strip(sample, 64)
    told = next(Looker(store=StripStore(tmp_path / "s")).look(scan_folder(folder, DatasetOptions(width=96, height=96))))
    assert told["samples"][0]["points"] == [20, 41]


def test_joined_datasets_keep_their_own_rates_words_and_notes(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, "a.mp4", moving(frames=17), "ohwx one")
    write(other, "a.mp4", moving(frames=33), "other", fps=32)
    small = {"width": 96, "height": 96, "num_frames": 9}
    joined = join(
        [
            scan_folder(one, DatasetOptions(trigger_word="ohwx", **small)),
            scan_folder(other, DatasetOptions(fps=32.0, regularization=True, loss_weight=0.5, **small)),
        ]
    )
    told = list(Looker(store=StripStore(tmp_path / "strips")).look(joined))
    first, second = told[0]["samples"]
    assert told[0]["name"] == "one, other"
    assert (first["window"], second["window"]) == ("one/a.mp4[0:9]", "other/a.mp4[0:9]")
    assert (first["fps"], second["fps"]) == (16, 32)
    assert (first["written"]["text"], second["written"]["text"]) == ("ohwx one", "other")
    assert (first["treatment"], second["treatment"]) == ("", "keeps what the model knows, its loss counts 0.5")
    assert first["notes"] == ["cropped: 8 of 17 frames at the end are in no window"]
    assert second["notes"] == ["cropped: 24 of 33 frames at the end are in no window"]
    assert not any(badge["kind"] == "no trigger" for sample in (first, second) for badge in sample["badges"])


def test_what_a_mask_leaves_out_is_under_stripes(tmp_path):
    folder = tmp_path / "set"
    path = write(folder, "a.mp4", np.full((9, 64, 64, 3), 200, np.uint8), "a")
    (folder / "masks").mkdir()
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    Image.fromarray(left).save(folder / "masks" / "a.png")
    small = {"width": 64, "height": 64, "num_frames": 9}
    (plain,) = scan_folder(folder, DatasetOptions(**small)).samples[:1]
    found = scan_folder(folder, DatasetOptions(mask_folder="masks", **small))
    (sample,) = found.samples
    store = StripStore(tmp_path / "strips")
    told = list(Looker(store=store).look(found))
    assert "masked by a.png" in told[0]["samples"][0]["treatment"]
    keys = {store.key(plain), store.key(sample), store.key(sample, "wan2.2")}
    assert len(keys) == 3
    shown = np.asarray(Image.open(store.picture(store.key(sample))).convert("RGB")).astype(int)[:64, :64]
    assert np.abs(shown[:, :28] - 200).max() < 12
    assert shown[:, 36:].mean() < 160
    assert shown[:, 36:].std() > 10  # stripes
    (tmp_path / "frame.webp").write_bytes(exact_frame(sample, 5))
    frame = np.asarray(Image.open(tmp_path / "frame.webp").convert("RGB")).astype(int)
    assert np.abs(frame[:, :28] - 200).max() < 8
    assert frame[:, 36:].mean() < 160
    assert store.get(store.key(sample)).measured == store.make("0" * 32, read_frames(sample).numpy()).measured
    assert path.is_file()


def test_a_mask_that_moves_is_shown_latent_by_latent(tmp_path):
    folder = tmp_path / "set"
    write(folder, "a.mp4", np.full((9, 64, 64, 3), 200, np.uint8), "a")
    clip_mask(folder / "masks" / "a.mkv", (1, 1, 1, 1, 1, 0, 0, 0, 0))
    options = DatasetOptions(width=64, height=64, num_frames=9, mask_folder="masks", mask_least=0.5)
    (sample,) = scan_folder(folder, options).samples
    shown = shaded(read_frames(sample).numpy(), sample, "wan2.1").astype(int)
    assert [abs(frame.mean() - 200) < 3 for frame in shown] == [True] * 5 + [False] * 4
    assert 165 < shown[5:].mean() < 180  # half of it counts
