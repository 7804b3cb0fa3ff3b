import os

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.deterministic import CUBLAS, NCCL, is_deterministic, same_bits, set_environment
from wan_train.core.settings.memory import MemoryOptions


@pytest.fixture
def environment(monkeypatch):
    """Neither variable is there, and none stays."""
    for name in (CUBLAS, NCCL):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )


def test_within_it_pytorch_refuses_what_has_no_fixed_order_and_afterwards_all_is_as_before(environment):
    before = flags()
    torch.backends.cudnn.benchmark = True
    with pytest.raises(KeyError), same_bits(True):  # noqa: PT012
        assert flags() == (True, False, False, False)
        assert is_deterministic()
        assert (os.environ[CUBLAS], os.environ[NCCL]) == (":4096:8", "Ring")
        raise KeyError
    assert flags() == (*before[:3], True)
    torch.backends.cudnn.benchmark = before[3]


def test_off_it_changes_nothing(environment):
    before = flags()
    with same_bits(False):
        assert flags() == before
        assert not is_deterministic()
        assert CUBLAS not in os.environ
        assert NCCL not in os.environ


def test_what_the_user_has_set_stays_where_it_does_and_is_refused_where_not(environment):
    environment.setenv(CUBLAS, ":16:8")
    environment.setenv(NCCL, "Tree")
    set_environment()
    assert (os.environ[CUBLAS], os.environ[NCCL]) == (":16:8", "Tree")
    environment.setenv(CUBLAS, ":0:0")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0', .* set it to :4096:8, or remove it"):
        set_environment()
    assert not is_deterministic()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention": "cudnn"}, "attention is cudnn, .* set attention to auto, flash or efficient"),
        ({"compile": "static"}, "compile is static: .* Set compile to auto, kernels or off"),
        ({"compile": "dynamic"}, "compile is dynamic: "),
    ],
)
def test_what_has_no_such_way_is_refused_by_name(options, said):
    MemoryOptions(**options)
    with pytest.raises(ConfigError, match=f"deterministic is on, but {said}"):
        MemoryOptions(**options, deterministic=True)
