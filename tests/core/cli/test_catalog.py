"""Downloads, by the real huggingface_hub from a small hub on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from wan_train.core.cli.catalog import SETS, HubFile, ask_hub, fetch
from wan_train.core.cli.main import main
from wan_train.core.errors import ModelFileError

CONTENT = bytes(range(256)) * 40
VAE = HubFile("org/models", "split_files/vae/tiny.safetensors")
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """The two questions that a download asks."""

    claimed = hashlib.sha256(CONTENT).hexdigest()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        lfs = {"oid": self.claimed, "size": len(CONTENT), "pointerSize": 1}
        entry = {"type": "file", "path": VAE.path, "size": len(CONTENT), "oid": "1" * 40, "lfs": lfs}
        self.answer(json.dumps([entry]).encode(), "application/json")

    def do_GET(self):
        self.answer(CONTENT, "application/octet-stream")

    def do_HEAD(self):
        self.answer(b"", "application/octet-stream", len(CONTENT))

    def answer(self, body, kind, length=None):
        self.send_response(200)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.claimed}"', "Content-Type": kind}
        for name, value in {**headers, "Content-Length": length or len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants  # what HF_ENDPOINT sets when it is imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_comes_into_its_folder_and_is_not_fetched_twice(hub, tmp_path):
    remote = ask_hub((VAE,))[VAE]
    said = []
    path = fetch(VAE, remote, tmp_path, on_state=said.append)
    assert path == tmp_path / "vae" / "tiny.safetensors"
    assert path.read_bytes() == CONTENT
    hub.shutdown()
    assert fetch(VAE, remote, tmp_path, on_state=said.append) == path
    assert said[-1] == "tiny.safetensors is there"


def test_damaged_content_is_not_put_in_place(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "claimed", "ab" * 32)
    with pytest.raises(ModelFileError, match="arrived damaged"):
        fetch(VAE, ask_hub((VAE,))[VAE], tmp_path)
    assert not (tmp_path / "vae" / "tiny.safetensors").exists()


def test_a_file_that_was_replaced_on_the_hub_is_refused(hub, tmp_path):
    known = HubFile(VAE.repository, "split_files/vae/wan_2.1_vae.safetensors")
    with pytest.raises(ModelFileError, match="it was replaced"):
        fetch(known, ask_hub((VAE,))[VAE], tmp_path)


def test_what_the_hub_lacks_is_named(hub):
    absent = HubFile("org/models", "split_files/vae/absent.safetensors")
    with pytest.raises(ModelFileError, match=r"no file split_files/vae/absent\.safetensors"):
        ask_hub((VAE, absent))


def test_without_a_connection_there_is_a_sentence(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelFileError, match="did not answer for org/models"):
        ask_hub((VAE,))


def test_the_command_lists_names_and_asks_for_what_it_needs(capsys, caplog):
    assert main(["download", "t2v-a14b", "--list"]) == 0
    assert "  diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors" in capsys.readouterr().out
    assert main(["download", "t2v-99b", "--list"]) == 1
    assert "'t2v-99b' is not known; there are t2v-1.3b" in caplog.text
    assert main(["download", "t2v-1.3b"]) == 1
    assert "with --to the folder" in caplog.text


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_all_that_training_needs(name):
    folders = [file.folder for file in SETS[name]]
    assert folders.count("vae") == folders.count("text_encoders") == 1
    assert folders.count("diffusion_models") == (2 if "a14b" in name else 1)
    assert all(not file.sha256 or len(file.sha256) == 64 for file in SETS[name])


def test_the_tokenizer_goes_beside_the_text_encoders(capsys):
    assert main(["download", "tokenizer", "--list"]) == 0
    assert "text_encoders/spiece.model  https://huggingface.co/google/umt5-xxl" in capsys.readouterr().out
