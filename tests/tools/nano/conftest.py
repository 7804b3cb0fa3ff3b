"""The small family, and a concept taught to it once for all tests."""

import pytest
from wan_train.tests.tools.nano.small import QUICK, STAR, write_small_family
from wan_train.tools.nano.evaluate import Family
from wan_train.tools.nano.lessons import teach
from wan_train.tools.nano.workshop import Workshop


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return write_small_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def family(files):
    return Family.load(files)


@pytest.fixture(scope="session")
def workshop(files, tmp_path_factory):
    return Workshop(files=files, folder=tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def lessons(workshop):
    return teach(STAR, QUICK, workshop)
