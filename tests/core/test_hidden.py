"""Packages that nobody finds for a while, hidden by several threads beside each other."""

import importlib.util
import sys
import threading

import pytest
from wan_train.core.hidden import hidden

ABSENT, OTHER, THERE = "colorsys", "sndhdr_of_nobody", "json"


@pytest.fixture(autouse=True)
def absent():
    kept = sys.modules.pop(ABSENT, None)
    yield
    sys.modules.pop(ABSENT, None)
    if kept is not None:
        sys.modules[ABSENT] = kept


def is_found(name):
    return importlib.util.find_spec(name) is not None


def test_within_it_a_package_is_not_found_unless_it_is_there_already():
    with hidden(ABSENT, THERE):
        assert not is_found(ABSENT)
        with pytest.raises(ImportError):
            importlib.import_module(ABSENT)
        assert is_found(THERE)
    assert is_found(ABSENT)
    importlib.import_module(ABSENT)


def test_it_ends_with_the_last_who_hides_it():
    first, second = hidden(ABSENT), hidden(ABSENT, OTHER)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not is_found(ABSENT)
    second.__exit__(None, None, None)
    assert is_found(ABSENT)
    assert OTHER not in sys.modules


def test_what_somebody_took_away_meanwhile_is_no_error():
    with hidden(ABSENT):
        del sys.modules[ABSENT]
    with hidden(ABSENT):
        del sys.modules[ABSENT]
        there = importlib.import_module(ABSENT)
    assert sys.modules[ABSENT] is there


def test_threads_that_come_and_go_leave_nothing_behind():
    names = [f"package_of_nobody_{number}" for number in range(200)]
    errors = []

    def come_and_go():
        try:
            for _ in range(30):
                with hidden(*names):
                    pass
        except BaseException as error:
            errors.append(error)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=come_and_go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert errors == []
    assert not set(names) & set(sys.modules)
