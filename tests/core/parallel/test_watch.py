"""Ranks that hear each other beside torch.distributed: one that ends, and one that falls silent."""

import pytest
from torch.distributed import PrefixStore, TCPStore
from wan_train.core.parallel.progress import Progress, RankPlace
from wan_train.core.parallel.standstill import StandstillLimits
from wan_train.core.parallel.watch import Farewell, LostRank, LostRankError, Watch, open_stores

ENDED = Farewell(5, "memory ran out", "start again")


class Table:
    """A store of one process, which can be gone."""

    def __init__(self):
        self.values, self.is_gone = {}, False

    def set(self, key, value):
        if self.is_gone:
            raise RuntimeError("connection closed")
        self.values[key] = value.encode()

    def check(self, keys):
        if self.is_gone:
            raise RuntimeError("connection closed")
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key]


@pytest.fixture
def pair():
    """Two watches of one store; the first notes what it loses. Neither has begun."""
    store, lost = Table(), []
    first = Watch(store, 0, 2, "cuda:0 of a", on_loss=lost.append, silence=0.0)
    second = Watch(store, 1, 2, "cuda:1 of b", on_loss=pytest.fail, silence=0.0)
    yield first, second, store, lost
    first.leave(Farewell(0))
    second.leave(Farewell(0))


def heard(watch, number):
    watch.say("name/1", "cuda:1 of b")
    watch.say("alive/1", str(number))


def test_who_speaks_is_there(pair):
    first, _, _, _ = pair
    for number in range(5):
        heard(first, number)
        assert first._look(silence=3600.0) is None
    assert first.others_left() == {}


def test_silence_names_the_rank(pair):
    first, *_ = pair
    heard(first, 1)
    assert first._look(silence=0.0) is None  # heard for the first time
    loss = first._look(silence=-1.0)
    assert loss.farewell is None
    assert loss.message.startswith("rank 1 (cuda:1 of b) was lost: its process was killed, or hangs")


def test_a_process_may_take_long_to_start(pair):
    first, *_ = pair
    assert first._look(silence=0.0) is None
    first._start -= 601.0
    assert first._look(silence=0.0).message.startswith("rank 1 was lost")


def test_a_farewell_says_why(pair):
    first, second, *_ = pair
    heard(first, 1)
    second.leave(ENDED)
    loss = first._look(silence=-1.0)
    assert loss == LostRank("rank 1 (cuda:1 of b) has ended: memory ran out", ENDED)
    assert first.explain() == loss
    error = LostRankError(loss)
    assert (str(error), error.about, error.loss) == (loss.message, "start again", loss)


def test_who_has_left_well_is_not_lost(pair):
    first, second, *_ = pair
    heard(first, 1)
    second.leave(Farewell(0))
    assert first._look(silence=-1.0) is None
    assert first.others_left() == {1: Farewell(0)}


def test_a_store_that_is_gone_is_a_loss(pair):
    first, _, store, _ = pair
    store.is_gone = True
    assert "the process that started this run, or its machine, is gone" in first._look(silence=3600.0).message
    assert first.explain().farewell is None


def test_a_loss_is_told_once_unless_this_rank_ends_first(pair, monkeypatch):
    monkeypatch.setattr("wan_train.core.parallel.watch.BEAT_S", 0.01)
    monkeypatch.setattr("wan_train.core.parallel.watch.GRACE_S", 0.02)
    first, second, _, lost = pair
    first.begin()
    second.leave(ENDED)
    first._thread.join(30)
    assert [loss.farewell for loss in lost] == [ENDED]


def test_a_rank_that_hangs_is_named_by_the_first_to_all():
    store, ours, theirs = Table(), Progress(), Progress()
    at_once = StandstillLimits(first_s=-1.0, host_s=-1.0)
    first = Watch(store, 0, 2, "cuda:0 of a", on_loss=pytest.fail, progress=ours, limits=at_once)
    second = Watch(store, 1, 2, "cuda:1 of b", on_loss=pytest.fail, progress=theirs)
    second.say("name/1", "cuda:1 of b")

    def look():
        second._beat(0)
        found = first._look(silence=3600.0)
        first._judge()
        return found

    assert look() is None
    assert look() is None  # neither is in a step
    with ours.step(), theirs.step():
        with ours.waiting():
            look()
            loss = look()
        assert loss.message.startswith("rank 1 (cuda:1 of b) hangs: its process has not got on within a step for ")
        assert loss.farewell is None
        assert second._look(silence=3600.0) == first.explain() == loss


def test_a_rank_may_be_heard_by_another_thread_while_the_first_looks(monkeypatch):
    first = Watch(Table(), 0, 3, "cuda:0 of a", on_loss=pytest.fail)
    heard(first, f"0 {Progress().place().written()}")
    assert first._look(silence=3600.0) is None
    read = RankPlace.read

    def read_slowly(text):
        first._heard[2] = first._heard[1]  # as the run's own thread does, which asks while it waits
        return read(text)

    monkeypatch.setattr(RankPlace, "read", read_slowly)
    first._judge()


def test_who_has_left_can_not_hang():
    store, ours = Table(), Progress()
    at_once = StandstillLimits(first_s=-1.0)
    first = Watch(store, 0, 2, "cuda:0 of a", on_loss=pytest.fail, progress=ours, limits=at_once)
    second = Watch(store, 1, 2, "cuda:1 of b", on_loss=pytest.fail)
    second._beat(0)
    second.leave(Farewell(0))
    with ours.waiting():
        for _ in range(2):
            assert first._look(silence=3600.0) is None
            first._judge()
    assert first._look(silence=3600.0) is None


def test_who_is_kept_waiting_for_as_long_as_it_would_look_looks_all_the_same(pair):
    first, second, *_ = pair
    heard(first, 1)
    second.leave(ENDED)
    assert first.explain(patience=0.0).farewell == ENDED


def test_all_alive_explains_nothing(pair):
    first, *_ = pair
    heard(first, 1)
    assert first.explain(patience=0.05) is None


def test_ranks_meet_where_the_first_holds_the_store():
    port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0"}
    ours, groups = open_stores(environment)
    theirs, _ = open_stores({**environment, "RANK": "1"})
    ours.set("word", "a")
    assert theirs.get("word") == b"a"
    assert not groups.check(["word"])
    later, _ = open_stores({**environment, "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert not later.check(["word"])
    assert isinstance(ours, PrefixStore)
