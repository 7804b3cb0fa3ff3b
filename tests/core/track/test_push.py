"""What is uploaded, by the real client against a local stand-in of the hub's HTTP API."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wan_train.core.errors import ConfigError
from wan_train.core.offline import OFFLINE
from wan_train.core.track.card import MARK
from wan_train.core.track.push import Order, stage
from wan_train.core.train.checkpoints import Checkpoints
from wan_train.core.wan.header import read_header

PACK = Path(__file__).resolve().parents[3]
METADATA = {
    "modelspec.trigger_phrase": "ohwx", "modelspec.author": "Ann", "ss_base_model_version": "wan2.2-t2v-a14b",
    "ss_network_dim": "4", "ss_learning_rate": "0.01", "ss_steps": "6", "format": "pt",
    "wantrain.job": '{"path": "/home/ann/secret"}', "workflow": "{}", "ss_tag_frequency": '{"d": {"a caption": 1}}',
}  # fmt: skip


@pytest.fixture
def finished(diary):
    """A run with its LoRA, two checkpoints and five previews."""
    lora = diary.folder.path / "test_low_noise.safetensors"
    save_file({"x": torch.ones(2, 3)}, lora, METADATA)
    diary.folder.write_result(step=6, lora=lora)
    for step in (4, 6):
        Checkpoints(diary.folder.checkpoints_path).save(
            step, {"x": torch.full((2, 3), float(step))}, {}, keep_last=2, metadata={"wantrain.job": "{}"}
        )
    for step in range(1, 6):
        diary.decode(step)
    return diary.folder.path


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_what_is_uploaded(finished, tmp_path):
    folder = tmp_path / "up"
    folder.mkdir()
    stage([finished], Order(to="ann/mine", checkpoints=True), folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == [
        "README.md",
        "checkpoints/test_low_1a2b_step4.safetensors",
        "checkpoints/test_low_1a2b_step6.safetensors",
        *(f"previews/test_low_1a2b_step-{step:08d}.webp" for step in (3, 4, 5)),
        "test_low_noise.safetensors",
    ]
    lora = folder / "test_low_noise.safetensors"
    assert torch.equal(load_file(lora)["x"], torch.ones(2, 3))
    assert set(METADATA) - set(metadata_of(lora)) == {"wantrain.job", "workflow", "ss_tag_frequency"}
    assert "wantrain.job" not in metadata_of(folder / "checkpoints" / "test_low_1a2b_step4.safetensors")
    assert not any(b"secret" in path.read_bytes() or b"a caption" in path.read_bytes() for path in folder.rglob("*.*"))


def test_with_job_it_is_the_file_as_it_is(finished, tmp_path):
    stage([finished], Order(to="ann/mine", with_job=True), tmp_path)
    assert (tmp_path / "test_low_noise.safetensors").read_bytes() == (
        finished / "test_low_noise.safetensors"
    ).read_bytes()


def test_the_card(finished, tmp_path):
    stage([finished], Order(to="ann/mine"), tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    head = card.split("---")[1]
    assert "base_model: Wan-AI/Wan2.2-T2V-A14B\n" in head
    assert 'instance_prompt: "ohwx"\n' in head
    assert "pipeline_tag: text-to-video\n" in head
    for part in (
        "# mine", "Trigger word: `ohwx`", "Author: Ann", "| `test_low_noise.safetensors` | the low noise model |",
        "| rank | 4 |", "| learning rate | 0.01 |", "| timestep sampling | uniform |",
        "(previews/test_low_1a2b_step-00000005.webp)", MARK,
    ):  # fmt: skip
        assert part in card
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard(card).data.base_model == "Wan-AI/Wan2.2-T2V-A14B"


def test_what_is_refused(diary, tmp_path):
    for to in ("mine", "a/b/c", "a b/c", "../x/y"):
        with pytest.raises(ConfigError, match="write USER/NAME"):
            Order(to=to)
    order = Order(to="ann/mine")
    with pytest.raises(ConfigError, match="is neither a run folder nor"):
        stage([tmp_path], order, tmp_path)
    with pytest.raises(ConfigError, match="has no finished LoRA: finish the run, or push its checkpoints"):
        stage([diary.folder.path], order, tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.ones(1)}, tmp_path / name / "same.safetensors")
    paths = [tmp_path / name / "same.safetensors" for name in ("one", "two")]
    with pytest.raises(ConfigError, match=r"two of the files are called same\.safetensors"):
        stage(paths, order, tmp_path)


class Hub(ThreadingHTTPServer):
    """The few requests of an upload. `files` of the repository, by name."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.created, self.tokens = {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answers(BaseHTTPRequestHandler):
    def answer(self, body, status=200, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self.chunks()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            made = json.loads(body)
            self.server.created.append(made)
            return self.answer({"url": f"{self.server.url}/ann/{made['name']}"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(
            {"commitUrl": f"{self.server.url}/ann/mine/commit/1", "commitOid": "1" * 40, "success": True}
        )

    def chunks(self):
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def do_GET(self):
        name = re.fullmatch(r"/ann/mine/resolve/main/(.+)", self.path.partition("?")[0])
        if name is None:
            return self.answer({"id": "ann/mine", "sha": "1" * 40, "siblings": [], "private": True})
        data = self.server.files.get(name[1])
        if data is None:
            return self.answer({"error": "none"}, 404, [("X-Error-Code", "EntryNotFound")])
        return self.answer(data, headers=[("ETag", f'"{hash(data)}"'), ("X-Repo-Commit", "1" * 40)])

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub")
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


def push(hub, tmp_path, *arguments, token="hf_test", offline=None):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "home"),
                   "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    for name in OFFLINE:  # our own commands set them, those of other tests in this process too
        environment.pop(name, None)
    if offline:
        environment["HF_HUB_OFFLINE"] = offline
    command = [sys.executable, str(PACK / "wantrain.py"), "push", *map(str, arguments), "--to", "ann/mine"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False, stdin=subprocess.DEVNULL
    )
    return result.returncode, result.stdout + result.stderr


def test_a_push_and_a_card_that_somebody_has_taken_over(finished, tmp_path, hub):
    code, said = push(hub, tmp_path, finished)
    assert code == 0, said
    assert "their captions, paths and workflow are left out" in said
    assert f"it is at {hub.url}/ann/mine" in said
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("mine", "ann")
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_test"}
    assert "# mine" in hub.files["README.md"].decode()
    path = tmp_path / "got.safetensors"
    path.write_bytes(hub.files["test_low_noise.safetensors"])
    assert read_header(path).metadata["modelspec.trigger_phrase"] == "ohwx"

    hub.files["README.md"] = b"# My own words"
    code, said = push(hub, tmp_path, finished)
    assert code == 0, said
    assert "README.md is left as it is" in said
    assert hub.files["README.md"] == b"# My own words"


def test_what_the_hub_refuses_is_one_sentence(finished, tmp_path):
    class Nobody:
        url = "http://127.0.0.1:9"

    code, said = push(Nobody, tmp_path, finished)
    assert code == 1
    assert "Hugging Face did not take it (" in said
    assert "hf auth login" in said
    assert "Traceback" not in said


def test_a_machine_that_is_kept_offline_is_told_so(finished, tmp_path, hub):
    code, said = push(hub, tmp_path, finished, offline="1")
    assert code == 1
    assert "HF_HUB_OFFLINE or" in said
    assert not hub.created
