import pytest
import torch
from wan_train.core.devices import resolve_device
from wan_train.core.errors import ConfigError


def test_devices_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cpu:1") == torch.device("cpu:1")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x", "cuda:-1"])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match="is not known: use auto, cpu, cuda:0"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "what"),
    [("cuda:99", "GPU"), ("mps:1", "Apple GPU"), ("xpu:99", "Intel GPU")],
)
def test_a_device_that_is_not_there_is_refused_by_a_sentence(name, what):
    with pytest.raises(ConfigError, match=rf"the device '{name}' is not there: this machine shows \d+ {what}"):
        resolve_device(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_mps_where_there_is_none():
    with pytest.raises(ConfigError, match=r"the device 'mps' is not there: this machine shows 0 Apple GPU\(s\)"):
        resolve_device("mps")
