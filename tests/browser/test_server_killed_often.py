"""The server is killed twice under one run, with the page left open and loaded anew, in both renderers."""

import os

import pytest
from wan_train.tests.browser.server_killed import killed_and_resumed


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX")
@pytest.mark.parametrize("modern", [False, True], ids=["canvas", "vue"])
@pytest.mark.parametrize("reload", [False, True], ids=["left_open", "loaded_anew"])
def test_a_run_goes_on_however_often_its_server_was_killed(browser, host_path, tmp_path, modern, reload):
    killed_and_resumed(browser, host_path, tmp_path, modern=modern, reload=reload, kills=2)
