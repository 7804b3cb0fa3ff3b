"""One cache for both: what the graph encoded is found without the host, and the reverse."""

import pytest
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tools.shapes import draw_dataset

CAPTIONS = ["a red circle", "x" * 600, "ünïcode 世界"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(folder, clips=2, images=1, size=32, frames=9, seed=0)
    return scan_folder(folder, DatasetOptions(width=32, height=32, num_frames=9, trigger_word="shp"))


def files(store):
    """Every file of the store with what changes if it is written again."""
    found = {path: path.stat() for path in store.root.rglob("*.safetensors")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.mark.parametrize("first", ["host", "headless"])
def test_latents_are_encoded_once(dataset, video, host_video, tmp_path, first):
    store = Store(tmp_path)
    encoders = [host_video, video] if first == "host" else [video, host_video]
    made, _ = cache_latents(dataset, encoders[0], store)
    before = files(store)
    found, _ = cache_latents(dataset, encoders[1], store)
    assert len(before) == len(dataset.samples) == 3
    assert files(store) == before
    assert found == made


@pytest.mark.parametrize("first", ["host", "headless"])
def test_captions_are_encoded_once(text, host_text, tmp_path, first):
    store = Store(tmp_path)
    encoders = [host_text, text] if first == "host" else [text, host_text]
    made, notes = cache_text(CAPTIONS, encoders[0], store)
    before = files(store)
    found, found_notes = cache_text(CAPTIONS, encoders[1], store)
    assert len(before) == len(CAPTIONS) + 1  # and the empty caption
    assert files(store) == before
    assert found == made
    assert [note.reason for note in found_notes] == [note.reason for note in notes]
    assert len(notes) == 1
