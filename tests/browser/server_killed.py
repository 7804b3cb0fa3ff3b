"""A server that dies under an open page while it trains, and what the page makes of it afterwards."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser
from wan_train.tests.browser.desk import NOTES, Desk, until
from wan_train.tests.browser.test_runs import await_card, card, open_tab
from wan_train.tests.browser.test_training import events, run_of, training
from wan_train.tests.host.runs import await_start, await_step, worker_pids
from wan_train.tests.host_server import start_host
from wan_train.tools.miniature import write_family
from wan_train.tools.server import free_port
from wan_train.tools.shapes import draw_dataset

PACK = Path(__file__).resolve().parents[2]
PACKS = [PACK, PACK / "tests" / "host_packs" / "tiny_clip"]
STEPS = 300


def killed_and_resumed(
    browser: Browser, host_path: Path, base: Path, *, modern: bool, reload: bool, kills: int
) -> None:
    """Kill the server `kills` times during a run, start it again each time, and go on from the list of runs.

    `reload`: the page is loaded anew each time; else it finds its server again by itself.
    """
    write_family(base / "models")
    draw_dataset(base / "input" / "shapes", clips=2, images=1, size=64, frames=9, seed=0)
    port = free_port()
    train = run = ""

    def begin(desk: Desk) -> None:
        nonlocal train, run
        ids = desk.load_prompt(training("killed", steps=STEPS, seed=69, checkpoint_every=10))
        train = ids["high_train"]
        desk.queue()
        desk.until(train, "step ")
        run = run_of(desk, train)

    def go_on(desk: Desk) -> None:
        told = desk.until(train, "stopped", timeout=120)  # the chart has found its run again, whole
        assert f"of {STEPS}" in told
        assert "run killed, begun " in desk.text(train, NOTES)
        assert "% killed" not in desk.page.title()
        open_tab(desk)
        await_card(desk, run, "stopped")
        card(desk, run).get_by_role("button", name="Resume").click()
        desk.until(train, "step ")

    desk: Desk | None = None
    act: Callable[[Desk], None] = begin
    for attempt in range(kills + 1):
        with start_host(host_path, base, port=port, packs=PACKS) as host:
            if desk is None:
                desk = Desk(browser, host, modern=modern)
            elif reload:
                desk.open()
            desk.host = host
            act(desk)
            act = go_on
            folder = base / "output" / "wan_train" / "runs" / run
            if attempt < kills:
                await_step(folder, await_start(folder, attempt + 1) + 3)
                os.kill(host.server.process.pid, signal.SIGKILL)  # the worker is left alone, and notices
                host.server.process.wait()
                until(lambda folder=folder: not worker_pids(folder), "the end of the worker")
            else:
                assert f"step {STEPS} of {STEPS}" in desk.until(train, "finished", timeout=120)
                starts = [event["step"] for event in events(desk, run) if event["event"] == "start"]
                assert len(starts) == kills + 1
                assert starts == sorted(starts)
                assert starts[1] > 0
                # Of lost requests the host's own page may complain.
                assert [text for text in desk.complaints if "[wan_train]" in text] == []
    assert desk is not None
    desk.close()
