"""Processes of `wantrain` that are forks: those of `run.py test`."""

import os
import socket
import struct
import subprocess

import pytest
from wan_train.tests import warm
from wan_train.tests.host_packs.warm_start import ADDRESS, WarmProcess

pytestmark = pytest.mark.skipif(
    not warm.CAN_FORK or os.environ.get("WANTRAIN_FORKS") != "1", reason="processes are started anew here"
)


def is_fork_that_ends_well():
    process = warm.start("train", "--help", stdout=subprocess.DEVNULL)
    return isinstance(process, WarmProcess) and process.wait() == 0


def test_whoever_is_killed_while_asking_takes_no_process_of_others_along():
    for order in (b"", struct.pack("!I", 1000), struct.pack("!I", 1000) + b"{"):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(os.environ[ADDRESS])
            asking.sendall(order)
    assert is_fork_that_ends_well()


def test_a_process_may_be_asked_for_by_one_that_is_gone_before_it_hears_of_it(tmp_path):
    with (tmp_path / "out").open("wb") as out, socket.socket(socket.AF_UNIX) as asking:
        asking.connect(os.environ[ADDRESS])
        order = b'{"arguments": ["wantrain.py", "train", "--help"], "cwd": "/", "env": {}}'
        socket.send_fds(asking, [struct.pack("!I", len(order))], [out.fileno()] * 3)
        asking.sendall(order)
    assert is_fork_that_ends_well()
