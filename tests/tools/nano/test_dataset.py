"""The drawn dataset."""

import numpy as np
import pytest
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.types import DatasetOptions
from wan_train.core.errors import ConfigError
from wan_train.tools.nano import dataset, world
from wan_train.tools.nano.concepts import CONCEPTS, training_scenes


def scan(folder, trigger_word):
    options = DatasetOptions(
        trigger_word=trigger_word, width=world.SIZE, height=world.SIZE, num_frames=world.NUM_FRAMES
    )
    return scan_folder(folder, options)


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
    assert capsys.readouterr().out.startswith("1 clips, ")
    with pytest.raises(SystemExit, match=r"Failed: .* has files in it"):
        dataset.main(arguments)
