"""ComfyUI is killed while a LoRA trains, and started again: the page shows the run, and Run goes on with it.

Of the long form (`run.py campaign page`): it takes a ComfyUI of its own, twice.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest
from wan_train.tests.browser.desk import Desk, until
from wan_train.tests.browser.test_training import events, run_of, training
from wan_train.tests.host_server import start_host
from wan_train.tools.miniature import write_family
from wan_train.tools.server import free_port
from wan_train.tools.shapes import draw_dataset

PACK = Path(__file__).resolve().parents[2]
PACKS = [PACK, PACK / "tests" / "host_packs" / "tiny_clip"]


@pytest.mark.skipif(os.name == "nt", reason="kills by a signal")
def test_a_run_goes_on_after_the_server_was_killed(request, browser, host_path, tmp_path):
    if not request.config.getoption("--both-renderers"):
        pytest.skip("of the long form: run.py campaign page")
    write_family(tmp_path / "models")
    draw_dataset(tmp_path / "input" / "shapes", clips=2, images=1, size=64, frames=9, seed=0)
    port = free_port()
    with start_host(host_path, tmp_path, port=port, packs=PACKS) as host:
        desk = Desk(browser, host, modern=True)
        train = desk.load_prompt(training("killed", checkpoint_every=50))["high_train"]
        desk.queue()
        desk.until(train, " left")
        run = run_of(desk, train)
        until(lambda: any(e["event"] == "checkpoint" for e in events(desk, run)), "a checkpoint", 120)
        os.killpg(host.server.process.pid, signal.SIGKILL)
        host.server.process.wait(30)
    shutil.rmtree(tmp_path / "custom_nodes")
    with start_host(host_path, tmp_path, port=port, packs=PACKS) as host:
        desk.host = host
        desk.open()
        desk.until(train, "queue again to go on")
        last = max(e["step"] for e in events(desk, run) if e["event"] == "checkpoint")
        desk.set_widget(train, "steps", last + 60)
        desk.queue()
        desk.until(train, "finished", timeout=180)
        starts = [e["step"] for e in events(desk, run_of(desk, train)) if e["event"] == "start"]
        assert starts[-1] >= 50
        desk.close()
