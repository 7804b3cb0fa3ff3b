import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from wan_train.core import disk, moving
from wan_train.core.data.stamps import file_stamp
from wan_train.core.data.store import Store, latent_key, text_key
from wan_train.core.data.types import MediaFile, Sample
from wan_train.core.disk import write_atomic
from wan_train.core.errors import RunError

TENSORS = {"latents": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)}
OTHER_PROCESS = """
import importlib.util, sys
from pathlib import Path
pack, root = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("wan_train", pack / "__init__.py", submodule_search_locations=[str(pack)])
sys.modules["wan_train"] = importlib.util.module_from_spec(spec)
import torch
from wan_train.core import disk
from wan_train.core.data.stamps import file_stamp
from wan_train.core.data.store import Store
print("ready", flush=True)
store = Store(root)
for i in range(24):
    store.save("latents", f"{i % 4:02x}key", {"latents": torch.full((64, 64), float(i % 4))})
    assert (store.load("latents", f"{i % 4:02x}key")["latents"] == i % 4).all()
"""


def sample(**changes):
    file = MediaFile(
        path="a", name="a", sha256="s", kind="video", width=64, height=48, num_frames=5, fps=16.0, caption="x"
    )
    return Sample(**{"file": file, "frame_indices": (0, 1, 2, 3, 4), "width": 64, "height": 48, **changes})


def leftovers(root):
    return [p for p in Path(root).rglob("*") if p.is_file() and p.suffix != ".safetensors"]


def test_round_trip_with_metadata(tmp_path):
    store = Store(tmp_path)
    assert store.load("latents", "ab12") is None
    assert store.metadata("latents", "ab12") is None
    assert not store.has("latents", "ab12")
    store.save("latents", "ab12", TENSORS, {"name": "clip"})
    assert torch.equal(store.load("latents", "ab12")["latents"], TENSORS["latents"])
    assert store.metadata("latents", "ab12")["name"] == "clip"
    assert store.has("latents", "ab12")
    assert store.path("latents", "ab12") == tmp_path / "latents" / "ab" / "ab12.safetensors"
    assert not leftovers(tmp_path)


def test_any_safetensors_reader_reads_the_files(tmp_path):
    store = Store(tmp_path)
    store.save("text", "ab12", {"context": torch.ones(3, 4)[:, ::2]})
    assert torch.equal(safetensors.torch.load_file(store.path("text", "ab12"))["context"], torch.ones(3, 2))


@pytest.mark.parametrize("size", [0, 5, 30, -1])
def test_a_cut_off_file_counts_as_absent_and_is_replaced(tmp_path, size):
    store = Store(tmp_path)
    store.save("latents", "k0", TENSORS)
    path = store.path("latents", "k0")
    path.write_bytes(path.read_bytes()[:size])
    assert store.load("latents", "k0") is None
    assert not store.has("latents", "k0")
    store.save("latents", "k0", TENSORS)
    assert store.has("latents", "k0")
    assert store.load("latents", "k0") is not None


@pytest.mark.parametrize("position", [0, 3, 20, -1, -50])
def test_a_flipped_bit_is_noticed(tmp_path, position):
    store = Store(tmp_path)
    store.save("latents", "k0", TENSORS)
    path = store.path("latents", "k0")
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
    assert store.load("latents", "k0") is None


def test_foreign_bytes_count_as_absent(tmp_path):
    store = Store(tmp_path)
    path = store.path("latents", "k0")
    path.parent.mkdir(parents=True)
    for text in (b"", b"hello", b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\xff" * 40):
        path.write_bytes(text)
        assert store.load("latents", "k0") is None
        assert store.metadata("latents", "k0") is None
        assert not store.has("latents", "k0")


def test_two_processes_write_the_same_keys(tmp_path):
    pack = Path(disk.__file__).resolve().parents[1]
    command = [sys.executable, "-c", OTHER_PROCESS, str(pack), str(tmp_path)]
    store = Store(tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for i in range(24):
            store.save("latents", f"{i % 4:02x}key", {"latents": torch.full((64, 64), float(i % 4))})
            assert (store.load("latents", f"{i % 4:02x}key")["latents"] == i % 4).all()
        _, stderr = other.communicate(timeout=300)
    assert other.returncode == 0, stderr
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    assert not leftovers(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs a mount of Linux")
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        store = Store(mount)
        store.save("latents", "k0", TENSORS)
        with pytest.raises(RunError, match=r"The disk with .* is full \(0\.[01] GB free\) .* is kept"):
            store.save("latents", "k1", {"latents": torch.zeros(100_000)})
        assert store.load("latents", "k0") is not None
        assert not store.has("latents", "k1")
        assert not leftovers(mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EROFS, "cannot be written .*choose another folder"),
        (errno.EACCES, "cannot be written .*change its permissions"),
        (errno.EIO, "cannot be written .*check the disk"),
    ],
)
def test_failed_writes_become_one_sentence(tmp_path, monkeypatch, code, message):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=message):
        Store(tmp_path).save("latents", "k0", TENSORS)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).save("latents", "k0", TENSORS)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def busy(times):
    """Path.replace as Windows has it while another process holds the target open."""
    calls, real = [], Path.replace

    def replace(self, target):
        calls.append(target)
        if len(calls) <= times:
            raise PermissionError(errno.EACCES, "in use")
        return real(self, target)

    return replace, calls


def test_a_file_in_use_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "_FIRST_PAUSE_S", 0)
    replace, calls = busy(3)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomic(tmp_path / "a", lambda file: file.write(b"x"))
    assert (tmp_path / "a").read_bytes() == b"x"
    assert len(calls) == 4


def test_a_file_in_use_for_good_is_an_error_unless_it_is_the_same(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save("latents", "k0", TENSORS)
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    replace, calls = busy(1000)
    monkeypatch.setattr(Path, "replace", replace)
    store.save("latents", "k0", TENSORS)
    assert len(calls) == 1
    with pytest.raises(RunError, match="cannot be written"):
        store.save("latents", "k1", TENSORS)
    assert not leftovers(tmp_path)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="cannot be written"):
            Store(tmp_path).save("latents", "k0", TENSORS)
    finally:
        tmp_path.chmod(0o700)


def test_a_root_that_is_a_file_is_told(tmp_path):
    (tmp_path / "root").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        Store(tmp_path / "root").save("latents", "k0", TENSORS)


def test_latent_keys_follow_pixels_encoder_and_mode_only():
    key = latent_key(sample(), "vae")
    assert key == latent_key(sample(repeats=7, held_out=True), "vae")
    others = [
        latent_key(sample(), "other"),
        latent_key(sample(), "vae", "first_frame"),
        latent_key(sample(width=80), "vae"),
        latent_key(sample(frame_indices=(0, 1, 2, 3, 5)), "vae"),
    ]
    assert len({key, *others}) == 5


def test_text_keys_follow_caption_and_encoder():
    assert len({text_key(c, e) for c in ("", "a", "b") for e in ("x", "y")}) == 6
    assert text_key("a", "x") == text_key("a", "x")


def test_the_header_is_plain_safetensors(tmp_path):
    store = Store(tmp_path)
    store.save("latents", "k0", TENSORS)
    data = store.path("latents", "k0").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["latents"]["dtype"] == "F32"
    assert shutil.disk_usage(tmp_path).free > 0


def test_a_look_reads_the_body_once_until_the_file_changes(tmp_path, await_tick):
    store = Store(tmp_path)
    assert store.look("latents", "k0") is None
    store.save("latents", "k0", TENSORS, {"name": "clip"})
    path = store.path("latents", "k0")
    assert not store.is_checked("latents", "k0")
    for found in (store.look("latents", "k0"), store.look("latents", "k0")):
        assert found is not None
        assert found.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
        assert found.metadata["name"] == "clip"
    assert store.is_checked("latents", "k0")
    store.remember_checked()
    assert Store(tmp_path).is_checked("latents", "k0")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    await_tick(path)
    path.write_bytes(data)
    for reader in (store, Store(tmp_path)):
        assert not reader.is_checked("latents", "k0")
        assert reader.look("latents", "k0") is None
        assert not reader.is_checked("latents", "k0")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\xff" * 40])
def test_a_look_at_foreign_bytes_finds_nothing(tmp_path, data):
    store = Store(tmp_path)
    path = store.path("latents", "k0")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert store.look("latents", "k0") is None
    store._checked.put("latents/k0/k0.safetensors", file_stamp(path))  # as if it had once been right
    assert store.look("latents", "k0") is None
