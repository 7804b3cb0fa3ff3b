import sys
import threading

import pytest
from wan_train.core.switching import SOON_S, switching_soon


@pytest.fixture
def usual():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield 0.005
    sys.setswitchinterval(before)


def test_it_stays_until_the_last_thread_has_left(usual):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with switching_soon():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with switching_soon():
        assert sys.getswitchinterval() == pytest.approx(SOON_S)
        thread.start()
        entered.wait()
    assert sys.getswitchinterval() == pytest.approx(SOON_S)
    leave.set()
    thread.join()
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_it_ends_with_an_error_too(usual):
    with pytest.raises(KeyError), switching_soon():
        raise KeyError
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_who_has_it_shorter_keeps_it(usual):
    sys.setswitchinterval(SOON_S / 10)
    with switching_soon():
        assert sys.getswitchinterval() == pytest.approx(SOON_S / 10, rel=0.1)
