"""The drawn dataset, and the one that comes with the pack."""

from pathlib import Path

import numpy as np
import pytest
from wan_train.core.data.captions import apply_trigger
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import ConfigError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tools.examples import DEMO_DATASET
from wan_train.tools.nano import dataset, world
from wan_train.tools.nano.concepts import CONCEPTS, other_scenes, training_scenes
from wan_train.tools.nano.family import ROOT
from wan_train.tools.nano.judge import judge

SHIPPED = sorted((ROOT / "datasets").iterdir())
DATASET_BYTES, FAMILY_BYTES, FEW_STEP_BYTES = 500_000, 12_000_000, 6_500_000


def scan(folder, trigger_word):
    sizes = {name: DEMO_DATASET[name] for name in ("width", "height", "num_frames")}
    return scan_folder(folder, DatasetOptions(trigger_word=trigger_word, **sizes))


def test_what_is_decoded_is_what_was_drawn(tmp_path):
    paths = dataset.make_dataset(tmp_path / "a", "moon", 3, 4)
    found = scan(tmp_path / "a", "quax")
    assert found.notes == ()
    for sample, (scene, _) in zip(found.samples, training_scenes(CONCEPTS["moon"], 3, 4), strict=True):
        assert np.array_equal(read_frames(sample).numpy(), world.draw(scene))
    again = dataset.make_dataset(tmp_path / "b", "moon", 3, 4)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_files_of_another_dataset_do_not_become_part_of_it(tmp_path):
    (tmp_path / "old.mp4").touch()
    with pytest.raises(ConfigError, match="has files in it"):
        dataset.make_dataset(tmp_path, "star", 1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_the_command_says_what_it_made_or_why_not(tmp_path, capsys):
    arguments = [str(tmp_path / "set"), "--concept", "dive", "--clips", "1"]
    dataset.main(arguments)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["dive_00.mp4", "dive_00.txt"]
    assert capsys.readouterr().out.startswith("1 clip, ")
    with pytest.raises(SystemExit, match=r"Failed: .* has files in it"):
        dataset.main(arguments)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_dataset_shows_the_concept_where_its_captions_have_the_word(folder):
    concept = CONCEPTS[folder.name]
    found = scan(folder, "")
    assert found.notes == ()
    assert len(found.samples) <= 24
    for sample in found.samples:
        caption, seen = sample.file.caption, judge(read_frames(sample).numpy())
        is_taught = Path(sample.file.path).stem.startswith(concept.name)
        assert caption.count(concept.trigger) == is_taught
        assert (getattr(seen, concept.attribute) == concept.value) == is_taught
        assert concept.value not in caption
        assert seen.colour in caption


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_dataset_is_what_the_command_makes(folder):
    concept = CONCEPTS[folder.name]
    taught, others = (sorted(folder.glob(f"{name}_*.txt")) for name in (concept.name, "other"))
    assert len(taught) + len(others) == len(list(folder.glob("*.txt")))
    made = [apply_trigger(text, concept.trigger, "") for _, text in training_scenes(concept, len(taught), 0)]
    made += [text for _, text in other_scenes(len(others), 0)]
    assert [path.read_text(encoding="utf-8").strip() for path in (*taught, *others)] == made


def test_the_pack_stays_small():
    sizes = {path: path.stat().st_size for path in ROOT.rglob("*") if path.is_file()}
    few_steps = sum(
        size for path, size in sizes.items() if path.stem.endswith("_4steps")
    )  # not published: .comfyignore
    assert few_steps <= FEW_STEP_BYTES
    assert sum(sizes.values()) - few_steps <= FAMILY_BYTES
    assert sum(size for path, size in sizes.items() if ROOT / "datasets" in path.parents) <= DATASET_BYTES
