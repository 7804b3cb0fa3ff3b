"""What DiffSynth-Studio is given to measure it, and what is read of it. Its own run needs a checkout, and is no test."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from wan_train.benchmarks import diffsynth
from wan_train.benchmarks.material import MODELS, Clip, random_pair
from wan_train.benchmarks.musubi import Peer

PACK = Path(__file__).resolve().parents[2]
CLIP = Clip(64, 32, 5)
SHAPE = [1, *CLIP.latent_shape(MODELS["toy"])]


@pytest.fixture
def peer(tmp_path) -> Peer:
    model = tmp_path / "toy.safetensors"
    return Peer(checkout=tmp_path, model_name="toy", model=model, clips=[CLIP], work=tmp_path, steps=2, warmup=1)


def write_records(folder: Path, rank: int, seconds: list[float], gb: float) -> None:
    lines = [json.dumps({"shape": SHAPE, "s": s, "first": False, "peak_reserved_gb": gb}) for s in seconds]
    (folder / f"records-{rank}.jsonl").write_text("\n".join(lines))


def test_the_cache_holds_the_clip_and_the_text(tmp_path):
    diffsynth.write_cache(tmp_path / "data", CLIP, MODELS["toy"])
    shared, positive, negative = torch.load(tmp_path / "data" / "0.pth", weights_only=True)
    latents, text = random_pair(CLIP, MODELS["toy"])
    assert torch.equal(shared["input_latents"], latents[None])
    assert (shared["width"], shared["height"], shared["num_frames"]) == (64, 32, 5)
    assert torch.equal(positive["context"][0, : len(text)], text)
    assert positive["context"].shape == (1, 512, 4096)
    assert not positive["context"][0, len(text) :].any()
    assert negative == {}


def test_its_tokenizer_can_be_read(tmp_path):
    diffsynth.write_tokenizer(tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").vocab_size == 1


def test_every_gpu_has_a_sample_in_each_step(tmp_path, peer):
    for gpus, repeat in ((1, "3"), (2, "6")):
        command = diffsynth.command(peer, gpus, tmp_path)
        assert command[command.index("--dataset_repeat") + 1] == repeat
        assert command[command.index("--lora_rank") + 1] == "16"


def test_the_times_are_of_the_first_process_and_the_peaks_of_all(tmp_path, peer):
    write_records(tmp_path, 0, [9.0, 2.0, 4.0], 2**30 / 1e9)
    write_records(tmp_path, 1, [9.0, 5.0, 5.0], 2 * 2**30 / 1e9)
    found = diffsynth.read_ranks(tmp_path, 2, peer, MODELS["toy"])
    assert (found["s"], found["first_step_s"]) == (3.0, 9.0)
    assert found["peaks_gb"] == pytest.approx([1.0, 2.0], abs=0.01)


def test_a_run_whose_processes_did_not_share_the_data_tells_nothing(tmp_path, peer):
    for rank in range(2):
        write_records(tmp_path, rank, [9.0] + [2.0] * 5, 1.0)
    assert diffsynth.read_ranks(tmp_path, 2, peer, MODELS["toy"]) == {}
    assert diffsynth.read_ranks(tmp_path, 3, peer, MODELS["toy"]) == {}
