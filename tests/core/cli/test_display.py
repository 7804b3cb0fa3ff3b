"""Bars in a terminal, lines in a file."""

import io

from wan_train.core.cli.display import Display
from wan_train.core.cli.stage_queue import show_events
from wan_train.core.launch.pace import duration


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


def test_what_is_no_step_is_told():
    stream = io.StringIO()
    events = [
        {"event": "start", "step": 0},
        {"event": "status", "message": "loading wan.safetensors"},
        {"event": "plan", "message": "14.3B fp8, 832x480x33: 14.7 of 16.0 GB, about 17 s a step"},
        {"event": "warning", "message": "lr_floor has no effect."},
        {"event": "step", "step": 1, "loss": 0.1},
        {"event": "validation", "step": 1, "loss": 0.25},
        {"event": "preview", "step": 4, "path": "previews/step-00000004.webp", "seconds": 12.3},
    ]
    show_events(Display(stream), "high", events)
    assert stream.getvalue().splitlines() == [
        "high: loading wan.safetensors",
        "high: 14.3B fp8, 832x480x33: 14.7 of 16.0 GB, about 17 s a step",
        "high: warning: lr_floor has no effect.",
        "high: held-out loss 0.2500 at step 1",
        "high: preview of step 4: previews/step-00000004.webp (12 s)",
    ]


def test_durations():
    assert [duration(seconds) for seconds in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
