"""The ComfyUI that all files of tests share, for one of them."""

import pytest
from wan_train.tests.host.runs import encode_shapes, set_aside_runs


@pytest.fixture(scope="module")
def host(host):
    """The shared ComfyUI, without the runs of other files: none is gone on with, listed, or taken for the file's own."""
    set_aside_runs(host)
    encode_shapes(host)
    return host
