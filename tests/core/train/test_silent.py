"""The diary of a rank that writes none."""

import logging

from wan_train.core.train.silent import Silent


def test_nothing_is_written_and_warnings_go_to_the_log(tmp_path, caplog):
    events = Silent(tmp_path / "events.jsonl")
    with caplog.at_level(logging.WARNING):
        events.write("step", step=1, loss=0.5)
        events.write("warning", message="a sentence")
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == ["a sentence"]
    assert events.trouble is None
    assert not events.is_overfull
