"""A file of a run that a scanner has open, as on Windows, is waited for beside ComfyUI's event loop."""

import asyncio
import threading

from safetensors.torch import save_file
from wan_train.core import moving
from wan_train.core.launch.follow import FollowedRun
from wan_train.core.train.claim import claim_run
from wan_train.tests.core.conftest import SIZE, job_in
from wan_train.tests.windows_disk import WindowsDisk
from wan_train.tools.miniature import dit_metadata, wan_dit


def test_a_worker_is_started_and_ended_in_threads(comfy, tmp_path, monkeypatch):
    from wan_train.nodes import follow, host

    for name in ("send_event", "show_progress", "show_text"):  # there is no page
        monkeypatch.setattr(host, name, lambda *_: None)
    model = tmp_path / "mini.safetensors"
    save_file(wan_dit(SIZE, seed=0), model, metadata=dit_metadata(SIZE))
    job = job_in(tmp_path, model)
    claim = claim_run(tmp_path / "runs", job)
    claim.folder.request_stop()

    monkeypatch.setattr(moving, "_FIRST_PAUSE_S", 0)
    disk, threads, end = WindowsDisk(monkeypatch), [], FollowedRun.end

    def on_refusal():
        threads.append(threading.get_ident())
        if disk.asked >= 3:
            disk.open.clear()

    def ended(run):
        threads.append(threading.get_ident())
        return end(run)

    disk.open, disk.on_refusal = {claim.folder.path / "stop"}, on_refusal
    monkeypatch.setattr(FollowedRun, "end", ended)

    async def follow_it():
        follower = follow.Follower(tmp_path / "runs", job, "1", graph=follow.Graph(None, None))
        assert await follower._train_once() is False
        return threading.get_ident()

    try:
        loops = asyncio.run(follow_it())
    finally:
        claim.release()
    assert disk.asked == 3
    assert len(threads) == 4
    assert loops not in threads
    assert claim.folder.finished_lora(job.loop.steps)


def test_a_start_that_is_cancelled_leaves_no_worker(comfy, tmp_path, monkeypatch):
    """As when another node fails: ComfyUI's loop ends, and cancels all tasks that it has."""
    from wan_train.nodes import follow

    begun, goes_on, ended = threading.Event(), threading.Event(), []

    class Run:
        def end(self):
            ended.append(self)

    def start(_follower):
        begun.set()
        goes_on.wait()
        return Run()

    monkeypatch.setattr(follow.Follower, "_start", start)

    async def until_cancelled():
        try:
            await asyncio.Event().wait()
        finally:
            goes_on.set()

    async def prompt():
        follower = object.__new__(follow.Follower)  # none of what it follows is asked for
        tasks = [asyncio.create_task(follower._started()), asyncio.create_task(until_cancelled())]
        await asyncio.to_thread(begun.wait)
        return tasks

    asyncio.run(prompt())
    assert len(ended) == 1
