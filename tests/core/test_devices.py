import pytest
import torch
from wan_train.core.devices import auto_devices, device_list, device_name, resolve_device
from wan_train.core.errors import ConfigError


def test_devices_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cpu:1") == torch.device("cpu:1")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x", "cuda:-1"])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match="is not known: use auto, all, cpu, cuda:0"):
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


@pytest.fixture
def four(monkeypatch):
    """A machine with four GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("auto", ["auto"]),
        ("cuda:2", ["cuda:2"]),
        ("3", ["cuda:3"]),
        ("all", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("0, 1", ["cuda:0", "cuda:1"]),
        ("cuda:1+cuda:3", ["cuda:1", "cuda:3"]),
        ("cpu,cpu,cpu", ["cpu:0", "cpu:1", "cpu:2"]),
        ("cpu:2,cpu:1", ["cpu:2", "cpu:1"]),
    ],
)
def test_several_devices_by_name(four, name, devices):
    assert str(resolve_device("cuda")) == "cuda:0"  # functions of torch that limit memory want a number
    assert device_list(name) == devices
    if len(devices) > 1:
        assert device_list(device_name(devices)) == devices


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("0,4", "the device 'cuda:4' is not there: this machine shows 4 GPU"),
        ("0,1,cuda:0", "the devices 'cuda:0, cuda:1, cuda:0' name cuda:0 twice"),
        ("cpu,cuda:0", "the devices 'cpu, cuda:0' are of several kinds"),
        ("auto,cuda:0", "auto and all stand alone"),
        ("all,cuda:0", "auto and all stand alone"),
        ("", "the device '' is not known"),
        (",", "the device ',' is not known"),
        ("gpu,cuda:0", "the device 'gpu' is not known"),
    ],
)
def test_a_list_that_can_not_be_is_refused_by_name(four, name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        device_list(name)


def test_all_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert auto_devices() == device_list("all") == ["cpu"]
