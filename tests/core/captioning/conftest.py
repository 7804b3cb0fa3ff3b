"""A tiny model, and a folder with two pictures and a clip."""

import numpy as np
import pytest
from PIL import Image
from wan_train.tests.core.captioning.tiny_model import write_tiny_model
from wan_train.tests.core.data.conftest import write_clip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "dataset"
    (folder / "more").mkdir(parents=True)
    for name, colour in (("red.png", (220, 30, 20)), ("more/blue.jpg", (10, 40, 230))):
        Image.fromarray(np.full((40, 64, 3), colour, np.uint8)).save(folder / name)
    write_clip(folder / "moves.mp4", 20)
    return folder
