"""After the server was killed the page finds the run, and it goes on; at length: test_server_killed_often.py."""

import os

import pytest
from wan_train.tests.browser.server_killed import killed_and_resumed


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX")
def test_a_run_goes_on_after_its_server_was_killed(browser, host_path, tmp_path):
    killed_and_resumed(browser, host_path, tmp_path, modern=True, reload=False, kills=1)
