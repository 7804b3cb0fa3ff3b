"""Going on from checkpoints that are damaged, half there, of earlier versions, or too large for the memory."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core import moving
from wan_train.core.adapters.setup import adapter_state
from wan_train.core.errors import RunError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.shortage import ShortageError
from wan_train.core.train.checkpoints import Checkpoints, DamagedCheckpointError, HeldError
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.train.resume import resume
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.state import collect, stateful_parts
from wan_train.tests.windows_disk import WindowsDisk

CPU = torch.device("cpu")
PACK = Path(__file__).resolve().parents[3]


def run(folder, stop_at=None):
    events = EventWriter(folder.events_path)

    def should_stop():
        return stop_at is not None and max(read_history(folder.events_path).losses, default=0) >= stop_at

    return run_job(folder, events, CPU, should_stop)


@pytest.fixture
def stopped(tmp_path, job):
    """A run with checkpoints of its steps 2 and 3, of 6."""
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    with pytest.raises(RunStoppedError):
        run(folder, stop_at=3)
    assert [step for step, _ in folder.checkpoints()] == [2, 3]
    return folder


@pytest.fixture
def fresh(job):
    """A model and optimizer as at the start of a run, and what has state in them."""
    prepared = prepare(job, CPU)
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    return prepared.model, optimizer, stateful_parts(prepared.model, optimizer, OPTIMIZERS.get(job.optimizer.name))


def flip(path, position=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 4
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resume_fresh(folder, job, fresh):
    return resume(folder, EventWriter(folder.events_path), fresh[2], steps=job.loop.steps, training=job.key)


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", ["adapter.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_file_is_noticed_told_and_kept(stopped, job, fresh, name, damage):
    model, optimizer, _ = fresh
    path = stopped.checkpoints()[-1][1]
    damage(path / name)
    assert resume_fresh(stopped, job, fresh) == 2
    (warning,) = read_history(stopped.events_path).warnings
    kept = stopped.checkpoints_path / "damaged-step-00000003"
    assert warning.startswith("the checkpoint of step 3 is damaged")
    assert str(path / name) in warning
    assert str(kept) in warning
    assert (kept / "adapter.safetensors").is_file()
    assert [step for step, _ in stopped.checkpoints()] == [2]
    saved = load_file(stopped.checkpoints()[0][1] / "adapter.safetensors")  # and nothing of the other is left
    assert all(torch.equal(tensor, saved[key]) for key, tensor in adapter_state(model).items())
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


def test_without_a_sound_checkpoint_the_model_is_as_it_was(stopped, job, fresh):
    model, optimizer, _ = fresh
    before = adapter_state(model)
    for _, path in stopped.checkpoints():
        flip(path / "state.pt")
    assert resume_fresh(stopped, job, fresh) == 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter_state(model).items())
    assert not optimizer.state
    assert len(list(stopped.checkpoints_path.glob("damaged-*"))) == 2


def test_the_run_ends_as_if_nothing_had_been_damaged(stopped, tmp_path, job):
    flip(stopped.checkpoints()[-1][1] / "adapter.safetensors")
    whole = RunFolder(tmp_path / "runs" / "whole")
    whole.path.mkdir()
    whole.write_job(job)
    ours, theirs = load_file(run(stopped)), load_file(run(whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    stopped.checkpoint_store.load(stopped.checkpoints()[-1][1])  # written anew


def test_a_checkpoint_of_an_earlier_version_is_taken(stopped, job, fresh):
    path = as_earlier_versions_wrote(stopped.checkpoints()[-1][1])
    assert resume_fresh(stopped, job, fresh) == 3
    assert path.is_dir()
    assert read_history(stopped.events_path).warnings == []


def as_earlier_versions_wrote(path):
    state = torch.load(path / "state.pt", weights_only=True)
    del state["manifest"]
    torch.save(state, path / "state.pt")
    (path / "manifest.json").unlink()
    return path


@pytest.mark.parametrize("name", ["adapter.safetensors", "state.pt"])
def test_half_a_file_of_an_earlier_version_is_damage_whatever_the_library_raises(stopped, job, fresh, name):
    cut(as_earlier_versions_wrote(stopped.checkpoints()[-1][1]) / name)
    assert resume_fresh(stopped, job, fresh) == 2
    assert "step 3 is damaged" in read_history(stopped.events_path).warnings[0]


def rename_key(tensors, state):
    tensors["diffusion_model.blocks.0.self_attn.p.lora_A.weight"] = tensors.pop(
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    )


def widen(tensors, state):
    key = next(iter(tensors))
    tensors[key] = torch.zeros(3, 3)


def make_infinite(tensors, state):
    next(iter(tensors.values())).fill_(float("inf"))


def halve(tensors, state):
    tensors.update({key: tensor.half() for key, tensor in tensors.items()})


def drop_optimizer(tensors, state):
    del state["optimizer"]


def drop_moment(tensors, state):
    del state["optimizer"]["state"][3]["exp_avg"]


def misshape_moment(tensors, state):
    state["optimizer"]["state"][3]["exp_avg"] = torch.zeros(2)


def spoil_moment(tensors, state):
    state["optimizer"]["state"][3]["exp_avg_sq"].fill_(float("nan"))


def spoil_count(tensors, state):
    state["optimizer"]["state"][3]["step"] = torch.tensor(-1.0)


def misplace_parameter(tensors, state):
    state["optimizer"]["state"][999] = state["optimizer"]["state"].pop(3)


def no_table(tensors, state):
    state["optimizer"] = [1, 2]


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "spoil",
    [rename_key, widen, make_infinite, halve, drop_optimizer, drop_moment, misshape_moment, spoil_moment, spoil_count,
     misplace_parameter, no_table],
)  # fmt: skip
def test_what_does_not_fit_leaves_no_trace_and_the_next_older_one_is_taken(stopped, job, fresh, spoil):
    path = as_earlier_versions_wrote(stopped.checkpoints()[-1][1])
    tensors, state = load_file(path / "adapter.safetensors"), torch.load(path / "state.pt", weights_only=True)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    spoil(tensors, state)
    save_file(tensors, path / "adapter.safetensors")
    torch.save(state, path / "state.pt")
    assert resume_fresh(stopped, job, fresh) == 2
    wanted, states = stopped.checkpoint_store.load(stopped.checkpoints()[-1][1])
    ours, our_states = collect(fresh[2])
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted)
    ours, wanted = (found["optimizer"]["state"] for found in (our_states, states))
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[i][name], wanted[i][name]) for i in wanted for name in wanted[i])


def test_a_checkpoint_that_lacks_a_file_does_not_stand_in_the_way_of_a_new_one(stopped):
    (stopped.checkpoints()[-1][1] / "state.pt").unlink()
    run(stopped)
    assert (stopped.checkpoints_path / "damaged-step-00000003").is_dir()
    assert [step for step, _ in stopped.checkpoints()] == [4, 6]


def test_one_that_lacks_a_file_and_is_open_elsewhere_does_not_stand_in_the_way(stopped, job, fresh, monkeypatch):
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    newest = dict(stopped.checkpoints())[3]
    (newest / "state.pt").unlink()
    WindowsDisk(monkeypatch).open.add(newest / "adapter.safetensors")
    assert resume_fresh(stopped, job, fresh) == 2
    assert newest.is_dir()


def test_a_lost_manifest_and_a_renamed_folder_are_noticed(stopped):
    store = stopped.checkpoint_store
    (_, older), (_, newer) = stopped.checkpoints()
    (newer / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"manifest.json is missing"):
        store.load(newer)
    shutil.rmtree(newer)
    with pytest.raises(DamagedCheckpointError, match="holds the checkpoint of step 2"):
        store.load(older.rename(newer))


def test_a_checkpoint_of_another_training_is_refused_and_kept_in_place(stopped, job, fresh):
    with pytest.raises(RunError, match="is of another training"):
        resume(stopped, EventWriter(stopped.events_path), fresh[2], steps=6, training="another")
    assert [step for step, _ in stopped.checkpoints()] == [2, 3]


def test_a_second_damaged_one_of_the_same_step_is_kept_too(stopped):
    (stopped.checkpoints_path / "damaged-step-00000003").mkdir()
    flip(stopped.checkpoints()[-1][1] / "state.pt")
    run(stopped)
    assert (stopped.checkpoints_path / "damaged-step-00000003-2" / "state.pt").is_file()


def test_a_file_that_may_not_be_read_is_no_damage(stopped, job, fresh, monkeypatch):
    path = stopped.checkpoints()[-1][1] / "state.pt"
    path.unlink()
    path.symlink_to(path)  # a loop: OSError when it is opened
    assert stopped.checkpoint_store.incomplete()
    path.unlink()
    path.mkdir()
    (stopped.checkpoints_path / "step-00000003" / "manifest.json").unlink()
    (stopped.checkpoints_path / "step-00000003" / "manifest.json").mkdir()
    with pytest.raises(RunError, match="can't be read") as caught:
        Checkpoints(stopped.checkpoints_path).load(stopped.checkpoints_path / "step-00000003")
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_an_incomplete_one_that_is_held_does_not_stand_in_the_way(stopped, monkeypatch):
    incomplete = stopped.checkpoints_path / "step-00000004"
    incomplete.mkdir()
    (incomplete / "adapter.safetensors").write_bytes(b"half")
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    disk = WindowsDisk(monkeypatch)
    disk.open.add(incomplete / "adapter.safetensors")
    run(stopped)
    assert read_history(stopped.events_path).state == "finished" or stopped.finished_lora(6)
    found = dict(stopped.checkpoints())
    assert sorted(found) == [4, 6]
    assert found[4] != incomplete
    assert incomplete.is_dir()
    stopped.checkpoint_store.load(found[4])
    disk.open.clear()
    again = Checkpoints(stopped.checkpoints_path)
    assert again.save(4, {}, {}, keep_last=9) == found[4]  # it is there
    shutil.rmtree(found[4])
    assert again.save(4, {"x": torch.zeros(1)}, {}, keep_last=9) == incomplete  # which is set aside now


def test_a_checkpoint_that_can_not_be_given_its_name_is_told_and_the_run_goes_on(stopped, monkeypatch):
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    WindowsDisk(monkeypatch).scans = True
    run(stopped)
    told = [event["message"] for event in EventReader(stopped.events_path).read() if event["event"] == "warning"]
    wanted = [f"the checkpoint of step {step} was not kept, and the run goes on without it" for step in (4, 6)]
    assert [message.partition(":")[0] for message in told] == wanted
    assert all("another program has it open" in message for message in told)
    assert stopped.finished_lora(6)
    assert [step for step, _ in stopped.checkpoints()] == [2, 3]


def test_where_the_run_is_to_be_stopped_it_is_an_error(stopped, monkeypatch):
    monkeypatch.setattr(moving, "PATIENCE_S", 0)
    WindowsDisk(monkeypatch).scans = True
    with pytest.raises(HeldError, match=r"another program has it open.*the checkpoint of step 3 is kept"):
        run(stopped, stop_at=5)


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import wantrain
wantrain.load_pack()
import torch
from pathlib import Path
from wan_train.core.shortage import ShortageError
from wan_train.core.train.checkpoints import Checkpoints
store = Checkpoints(Path(sys.argv[2]))
_, path = store.all()[-1]
store.load(path)  # with enough memory, and all that is imported on the way
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), -1))
try:
    store.load(path)
except ShortageError as error:
    print(error)
"""


@pytest.mark.grid(2)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address-space limits, and /proc to set one by")
@pytest.mark.parametrize("room", [8 * 2**20, 72 * 2**20])
def test_little_memory_is_no_damage(tmp_path, room):
    """A real limit: the first leaves no room for the adapter's map, the second none for the rest."""
    numbers = torch.rand(2**24)  # 64 MB
    store = Checkpoints(tmp_path / "checkpoints")
    path = store.save(5, {"a": numbers}, {"optimizer": {"b": numbers.clone()}}, keep_last=1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    command = [sys.executable, "-c", LIMITED, str(PACK), str(store.path), str(room)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert "Main memory ran out while" in result.stdout
    assert str(path) in result.stdout
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 5 bytes from file <x>: Cannot allocate memory (12)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_shortage_while_parts_take_over_their_state_sets_nothing_aside(stopped, job, fresh, error):
    class Full:
        def state_dict(self):
            return {}

        def check_state(self, _state):
            raise error

        def load_state_dict(self, _state):
            raise AssertionError

    parts = {**fresh[2], "optimizer": Full()}
    with pytest.raises(ShortageError, match="memory ran out while the checkpoint"):
        resume(stopped, EventWriter(stopped.events_path), parts, steps=6, training=job.key)
    assert [step for step, _ in stopped.checkpoints()] == [2, 3]
    assert not list(stopped.checkpoints_path.glob("damaged-*"))


def test_another_part_with_state_joins_in_the_table(stopped, job, fresh):
    class Counter:
        value = 5

        def state_dict(self):
            return {"value": self.value}

        def check_state(self, state):
            if not isinstance(state.get("value"), int):
                raise ValueError("no number")

        def load_state_dict(self, state):
            self.value = state["value"]

    counter = Counter()
    parts = {**fresh[2], "counter": counter}
    tensors, states = collect(parts)
    stopped.checkpoint_store.save(5, tensors, {"step": 5, **states}, keep_last=9)
    counter.value = 0
    assert resume(stopped, EventWriter(stopped.events_path), parts, steps=6, training=job.key) == 5
    assert counter.value == 5


def test_a_job_that_was_changed_on_disk_is_refused_by_name(stopped):
    data = json.loads(stopped.job_path.read_text())
    data["loop"]["seed"] += 1
    stopped.job_path.write_text(json.dumps(data))
    with pytest.raises(RunError, match=r"job.json is damaged or was changed"):
        stopped.read_job()
    del data["sha256"]  # as earlier versions wrote it
    stopped.job_path.write_text(json.dumps(data))
    assert stopped.read_job().loop.seed == data["loop"]["seed"]


@pytest.mark.parametrize("text", [b"\xff\xfe", b"5", b"null", b"[" * 100_000, b'{"schema": 1e999}', b""], ids=range(6))
def test_what_is_no_job_is_refused_with_a_sentence(stopped, text):
    stopped.job_path.write_bytes(text)
    with pytest.raises((RunError, ValueError), match=r"job\.json"):
        stopped.read_job()
    stopped.refuse_newer_job()  # it may be replaced


def test_starts_are_told(stopped):
    run(stopped)
    starts = [event["step"] for event in EventReader(stopped.events_path).read() if event["event"] == "start"]
    assert starts == [0, 3]


def test_a_shorter_request_leaves_longer_checkpoints_alone(stopped, job, fresh):
    shorter = replace(job, loop=replace(job.loop, steps=2))
    assert resume(stopped, EventWriter(stopped.events_path), fresh[2], steps=2, training=shorter.key) == 2
    assert [step for step, _ in stopped.checkpoints()] == [2, 3]
