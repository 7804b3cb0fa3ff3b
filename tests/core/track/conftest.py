"""Runs as they lie on a disk, with a diary of our own making, and a server that takes what is sent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from wan_train.core.train.events import EventWriter
from wan_train.core.train.preview_folder import PreviewFolder, write_video
from wan_train.core.train.run_folder import RunFolder


class Diary:
    """A run folder whose diary a test writes."""

    def __init__(self, path, job):
        self.folder = RunFolder(path)
        path.mkdir(parents=True)
        self.folder.write_job(job)
        self.events = EventWriter(self.folder.events_path)

    def steps(self, first, last, start=None):
        """A start, and a step each, with a loss of 1 / step."""
        self.events.write("start", step=first - 1 if start is None else start)
        for step in range(first, last + 1):
            self.events.write(
                "step", step=step, loss=1 / step, lr=1e-4, grad_norm=0.5, sigma=0.9, seconds=0.1, tokens=64
            )

    def preview(self, step, *, decoded=True, prompts=1):
        for number in range(prompts if decoded else 0):
            self.decode(step, number)
        several = {"prompts": prompts} if prompts > 1 else {}
        self.events.write("preview", step=step, path=f"previews/step-{step:08d}.webp", seconds=1.0, **several)

    def decode(self, step, number=0):
        frames = np.zeros((3, 16, 24, 3), np.uint8)
        frames[1, :, :, 0] = 200
        folder = PreviewFolder.of(self.folder)
        folder.path.mkdir(exist_ok=True)
        write_video(folder.video_path(step, number), frames, 16)


@pytest.fixture
def diary(tmp_path, job):
    return Diary(tmp_path / "work" / "runs" / "test_low_1a2b", job)


@pytest.fixture
def hook():
    """A local server: `hook.url`, the messages that came, and the status that it answers with."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.messages, server.status = [], 200
    server.url = f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
