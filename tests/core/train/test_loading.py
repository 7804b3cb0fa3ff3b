"""Streamed blocks while the base is loaded: never all of them in main memory, and the same bytes in the end."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.memory.master import streamed_bytes
from wan_train.core.plan.sizes import rest_bytes
from wan_train.core.settings.job import Job, job_to_json
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.wan.conftest import build_model, make_weights

CPU = torch.device("cpu")
STATUS = Path("/proc/self/status")
PACK = Path(__file__).resolve().parents[3]

# The main memory that no file backs, which the system cannot take back: the most of it while a model is prepared.
MEASURE = """
import gc, importlib.util, sys, threading
from dataclasses import replace
from pathlib import Path

pack, job_file, scratch = map(Path, sys.argv[1:])
spec = importlib.util.spec_from_file_location("wan_train", pack / "__init__.py", submodule_search_locations=[str(pack)])
sys.modules["wan_train"] = importlib.util.module_from_spec(spec)
import torch
from wan_train.core.adapters.peft_hooks import import_adapters
from wan_train.core.settings.job import job_from_json
from wan_train.core.train.prepare import prepare

import_adapters()

def taken():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

def watch(found, over):
    while not over.wait(0.001):
        found.append(taken())

def measure(job):
    found, over = [taken()], threading.Event()
    watcher = threading.Thread(target=watch, args=(found, over))
    watcher.start()
    prepare(job, torch.device("cpu"), scratch=scratch).features.close()
    over.set()
    watcher.join()
    return max(found) - found[0]

job = job_from_json(job_file.read_text())
print(measure(job))
gc.collect()
print(measure(replace(job, memory=replace(job.memory, stream_from="pageable"))))
"""


@pytest.fixture
def large_job(tmp_path, job: Job) -> tuple[Job, int, int]:
    """A job whose model has 8 blocks of 15 MB; with the bytes of a block, and of all else."""
    config = WanConfig(dim=512, ffn_dim=1536, num_heads=4, num_layers=8, text_dim=job.data.text_dim)
    weights = make_weights(config)
    block = streamed_bytes(build_model(config, weights).blocks[0])
    path = tmp_path / "large.safetensors"
    save_file(weights, path)
    return (
        replace(job, model=replace(job.model, path=str(path), identity=inspect(path).identity)),
        block,
        rest_bytes(config),
    )


@pytest.mark.grid(2, "main memory of a large model")
@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell what a process takes")
def test_main_memory_holds_two_mapped_blocks_and_of_others_one_more_than_there_are(tmp_path, large_job):
    job, block, rest = large_job
    job = replace(job, memory=MemoryOptions(streamed_blocks=8, stream_from="mapped"))
    (tmp_path / "job.json").write_text(job_to_json(job))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, PACK, tmp_path / "job.json", tmp_path / "scratch"],
        capture_output=True, text=True, check=True, env={"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    margin = 12e6  # the adapter, the index of a file, Python's own
    mapped, pageable = map(int, done.stdout.split())
    assert mapped < 2 * block + rest + margin
    assert 7 * block < pageable < 9 * block + rest + margin


@pytest.mark.parametrize(
    ("precision", "memory"),
    [
        ("fp32", {"streamed_blocks": 1, "stream_from": "pinned"}),
        ("bf16", {"streamed_blocks": 1, "stream_from": "pageable"}),
        ("fp8", {"streamed_blocks": 1, "stream_from": "mapped"}),
        ("fp8", {"streamed_blocks": 2, "mapped_blocks": 1}),
    ],
)
def test_what_is_loaded_is_the_same_to_the_bit(tmp_path, job: Job, precision, memory):
    job = replace(job, model=replace(job.model, precision=precision))
    plain = prepare(job, CPU).model
    options = MemoryOptions(**memory)
    prepared = prepare(replace(job, memory=options), CPU, scratch=tmp_path)
    assert prepared.features.streamer is not None
    kinds = [master.kind for master in prepared.features.streamer.masters.values()]
    assert kinds.count("mapped") == (1 if options.stream_from == "mapped" else options.mapped_blocks or 0)
    ours, theirs = prepared.model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(
            ours[name].contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)
        )
    prepared.features.close()


def test_the_log_says_what_preparing_took(job: Job, caplog):
    with caplog.at_level("INFO", logger=prepare.__module__):
        prepare(job, CPU)
    assert [message.split()[0] for message in caplog.messages] == ["Reading", "Waiting", "Adding", "Putting", "Waiting"]
    assert all(re.search(r" took \d+\.\d s\.$", message) for message in caplog.messages)
