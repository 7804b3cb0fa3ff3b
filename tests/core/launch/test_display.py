"""Bars in a terminal, lines in a file."""

import io

from wan_train.core.launch.display import Display, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_a_line_now_and_then():
    stream = io.StringIO()
    display = Display(stream)
    for done in range(1, 101):
        display.update("high", done, 100, f"loss {done}")
    display.update("high", 100, 100, "loss 100")
    display.say("low: finished")
    assert stream.getvalue() == "high: 1/100  loss 1\nhigh: 100/100  loss 100\nlow: finished\n"


def test_a_terminal_gets_bars_that_move():
    stream = Terminal()
    display = Display(stream)
    display.update("high", 40, 100, "loss 0.5")  # a run that goes on
    display.update("low", 1, 100)
    display.update("high", 41, 100, "loss 0.4")
    display.say("a message")
    display.close()
    said = stream.getvalue()
    assert "high:  41%" in said
    assert "41/100" in said
    assert "loss 0.4" in said
    assert "low:   1%" in said
    assert "a message\n" in said
    assert "\r" in said


def test_durations():
    assert [duration(seconds) for seconds in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
