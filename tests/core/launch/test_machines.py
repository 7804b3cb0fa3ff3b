"""A run over two machines with two ranks each: on this machine by its own address, and in two network namespaces, of which
one loses its cable."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from wan_train.core.cli.main import main
from wan_train.core.recipe.recipe import recipe_from_tables, recipe_to_toml
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.launch.material import recipe_over
from wan_train.tests.host_packs.warm_start import start as start_command

PACK = Path(__file__).resolve().parents[3]
PATIENCE_S = 600.0  # of ten processes, on two cores
PAIRS = "cpu:0+cpu:1", "cpu:2+cpu:3"


@pytest.fixture
def recipe_file(models, pictures, tmp_path):
    tables = recipe_over(models, pictures)
    given = {name: file for name, file in tables["models"].items() if name != "low"}
    changes = {"models": given, "loop": {"steps": 4, "checkpoint_every": 2}, "precision": "fp32"}
    recipe = recipe_from_tables({**tables, **changes, "work": str(tmp_path / "work")}, tmp_path)
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    return tmp_path / "recipe.toml"


@pytest.fixture
def machine(recipe_file, tmp_path):
    """Starts `wantrain train` as one of two machines; what it says goes to a file. All end with the test."""
    started = []

    def start(number, address, *more, before=(), **environment):
        command = [sys.executable, str(PACK / "wantrain.py"), "train", str(recipe_file)]
        command += [
            "--nodes",
            "2",
            "--node-rank",
            str(number),
            "--rendezvous",
            address,
            "--devices",
            PAIRS[number],
            *more,
        ]
        said = tmp_path / f"machine-{number}.txt"
        with said.open("ab") as file:
            options = {
                "stdin": subprocess.DEVNULL,
                "stdout": file,
                "stderr": file,
                "env": {**os.environ, **environment},
            }
            process = start_command([*before, *command], **options)
        started.append(process)
        return process, said

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait(PATIENCE_S)


def free_port():
    """Below those that systems give to whoever wants any: nobody has it when the first machine comes to it."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("all ports are taken")


def await_step(work, step, *processes):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for folder in (work / "runs").glob("shapes_*"):
            if max(read_history(folder / "events.jsonl").losses, default=0) >= step:
                return RunFolder(folder)
        for process, said in processes:
            assert process.poll() is None, said.read_text()
        time.sleep(0.1)
    raise AssertionError([said.read_text() for _, said in processes])


@pytest.mark.grid(3, "several devices")
def test_two_machines_train_one_run(machine, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    second = machine(1, address)  # before the first: it waits
    first = machine(0, address)
    for process, said in (first, second):
        assert process.wait(PATIENCE_S) == 0, said.read_text()
    (folder,) = map(RunFolder, (tmp_path / "work" / "runs").glob("shapes_*"))
    assert folder.finished_lora(4)
    assert folder.read_job().loop.gradient_accumulation == 4
    assert sorted(read_history(folder.events_path).losses) == [1, 2, 3, 4]
    assert "4 GPUs: each step trains 4 batches, one a GPU" in first[1].read_text()
    assert "[rank 0] " in folder.log_path.read_text(encoding="utf-8")
    (log,) = folder.path.glob("worker-*.log")
    assert "[rank 2] " in log.read_text(encoding="utf-8")
    assert list((tmp_path / "work" / "loras").iterdir())


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is sent otherwise on Windows")
@pytest.mark.parametrize("number", [0, 1])
def test_ctrl_c_on_either_stops_both_with_a_checkpoint(machine, tmp_path, number):
    address = f"127.0.0.1:{free_port()}"
    both = [machine(number, address, "--set", "loop.steps=100000") if number == 0 else machine(number, address)
            for number in range(2)]  # fmt: skip
    folder = await_step(tmp_path / "work", 3, *both)
    both[number][0].send_signal(signal.SIGINT)
    codes = [process.wait(PATIENCE_S) for process, _ in both]
    assert codes[number] == 3, both[number][1].read_text()
    assert 0 not in codes
    assert EventReader(folder.events_path).read()[-1]["event"] == "stopped"
    assert folder.checkpoints()[-1][0] == max(read_history(folder.events_path).losses)


@pytest.mark.long
def test_a_folder_that_is_not_shared_is_noticed(machine, tmp_path, monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    first = machine(0, address)
    second = machine(1, address, "--work", str(tmp_path / "elsewhere"))
    assert second[0].wait(PATIENCE_S) == 1
    said = second[1].read_text()
    assert "machine 0 trains in" in said
    assert "which is not there: the folder for work must lie on a disk that all machines share" in said
    first[0].terminate()
    assert first[0].wait(PATIENCE_S) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--nodes", "2", "--node-rank", "2", "--rendezvous", "a:1"), "each has a number of 0 to N-1"),
        (("--nodes", "2"), "--rendezvous is '': give the name or address of machine 0 and a free port"),
        (("--nodes", "2", "--rendezvous", "a:x"), "--rendezvous is 'a:x'"),
        (("--nodes", "2", "--rendezvous", "a:1", "--devices", "cpu:0,cpu:1"), "use all, or cpu:0+cpu:1"),
    ],
)
def test_what_can_not_be_is_refused(recipe_file, arguments, sentence, caplog):
    assert main(["train", str(recipe_file), *arguments]) == 1
    assert sentence in caplog.text


@pytest.fixture
def cable():
    """Two network namespaces, as machines: commands to run something there, the first one's address, and to cut the cable."""
    if os.name == "nt" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"wt{os.getpid()}{end}" for end in "ab"]
    links = [f"{name}v" for name in names]

    def ip(*words):
        return subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        pytest.skip(f"network namespaces are not permitted here: {error.stderr}")
    for number, (name, link) in enumerate(zip(names, links, strict=True)):
        ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", link)
        ip("-n", name, "link", "set", link, "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield (
        [("ip", "netns", "exec", name) for name in names],
        "10.77.0.1",
        lambda: ip("-n", names[1], "link", "set", links[1], "down"),
    )
    for name in names:
        ip("netns", "del", name)


@pytest.mark.long
def test_a_machine_that_is_lost_ends_the_run_on_the_other(machine, cable, tmp_path):
    there, address, cut = cable
    silence = {"WANTRAIN_SILENCE": "6"}
    first = machine(0, f"{address}:29511", "--set", "loop.steps=100000", before=there[0], **silence)
    second = machine(1, f"{address}:29511", before=there[1], **silence)
    folder = await_step(tmp_path / "work", 3, first, second)
    cut()
    assert first[0].wait(PATIENCE_S) == 1
    assert second[0].wait(PATIENCE_S) == 1
    error = EventReader(folder.events_path).read()[-1]
    assert error["event"] == "error"
    assert "rank 2 (cpu:2 of " in error["message"] or "rank 3 (cpu:3 of " in error["message"]
    assert "was lost" in error["message"]
    assert folder.checkpoints()
    assert "last checkpoint is kept" in second[1].read_text()
