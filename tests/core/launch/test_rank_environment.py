import os
from dataclasses import replace

from wan_train.core.launch.rank_environment import Machines, rank_environment, standstill_limits
from wan_train.core.parallel.standstill import StandstillLimits


def test_what_ranks_find_in_their_environment(tmp_path):
    found = rank_environment({}, ["cpu:0", "cpu:1"], tmp_path, Machines())
    assert found["WANTRAIN_DEVICES"] == "cpu:0,cpu:1"
    assert int(found["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
    given = {"OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "eth7"}
    assert not set(rank_environment(given, ["cpu:0"], tmp_path, Machines())) & set(given)


def test_a_person_can_set_how_long_a_run_may_stand_still(monkeypatch):
    assert standstill_limits() == StandstillLimits()
    monkeypatch.setenv("WANTRAIN_STANDSTILL", "300")
    assert standstill_limits() == replace(StandstillLimits(), still_s=300.0, host_s=300.0)
