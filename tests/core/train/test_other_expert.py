"""Previews through both experts: the other one read block by block, with its newest LoRA, and what is refused."""

import os
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.adapters.formats import LoraModule, write_lora
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.sample.previews import check_previews, preview_shots
from wan_train.core.sample.sampler import initial_noise, sample, schedule
from wan_train.core.settings.job import ModelSpec
from wan_train.core.train import other_expert, previews
from wan_train.core.train.batches import load_context
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.other_expert import OtherExpert, newest_lora, open_other, other_spec
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.preview_sampling import sample_shots
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer, transformer_bytes, transformer_parts
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_previews import learnt, staged
from wan_train.tests.core.train.test_run import CPU, run
from wan_train.tools.miniature import dit_metadata, wan_dit


@pytest.fixture
def other(tmp_path):
    """The file of another expert of the same size, with more blocks than sort by name as they do by number."""
    path = tmp_path / "the_other_expert.safetensors"
    save_file(wan_dit(SIZE, seed=77), path, metadata=dit_metadata(SIZE))
    return inspect(path)


def spec(info):
    return ModelSpec(path=str(info.path), identity=info.identity)


@pytest.mark.parametrize("num_layers", [2, 11])
def test_parts_make_the_model_block_by_block(tmp_path, num_layers):
    size = replace(SIZE, num_layers=num_layers)
    save_file(wan_dit(size, seed=3), tmp_path / "dit.safetensors", metadata=dit_metadata(size))
    info = inspect(tmp_path / "dit.safetensors")
    whole = load_transformer(info, dtype=torch.float32, device="cpu")
    inputs = torch.randn(2, 16, 2, 4, 4), torch.tensor([900.0, 900.0]), torch.randn(2, 512, size.text_dim)
    seen = []
    for index, model in transformer_parts(info, dtype=torch.float32, device=CPU):
        if index is not None:
            model.blocks[index].to("meta")
        seen.append(index)
        assert all(p.is_meta for block in model.blocks for p in block.parameters())
    assert seen == [None, *range(num_layers)]
    with torch.no_grad():
        found, expected = OtherExpert(info, CPU).velocity({}, *inputs), whole(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def counted_reads(monkeypatch):
    """How often a model is read from its file, from now on."""
    reads = []

    def parts(*args, **options):
        reads.append(1)
        return transformer_parts(*args, **options)

    monkeypatch.setattr(other_expert, "transformer_parts", parts)
    return reads


@pytest.mark.parametrize("skipped", [(), (1,)])
def test_where_there_is_room_a_model_is_read_once(tmp_path, other, monkeypatch, skipped):
    inputs = torch.randn(2, 16, 2, 4, 4), torch.tensor([900.0, 900.0]), torch.randn(2, 512, SIZE.text_dim)
    module = LoraModule(down=torch.randn(2, SIZE.dim), up=torch.randn(SIZE.dim, 2), alpha=2.0)
    modules = {f"blocks.{number}.self_attn.q": module for number in (0, 1)}
    write_lora(tmp_path / "lora.safetensors", modules, metadata={})
    asked = []

    def room(device):
        asked.append(device)
        return 10**12

    def velocities(expert):
        with torch.no_grad(), expert.without_blocks(skipped):
            first = expert.velocity({}, *inputs)
        with torch.no_grad():
            return [first, expert.velocity({}, *inputs), expert.velocity({}, *inputs)]

    lora = tmp_path / "lora.safetensors"
    reads = counted_reads(monkeypatch)
    expected = velocities(OtherExpert(other, CPU, lora))
    assert len(reads) == 3
    reads.clear()
    expert = OtherExpert(other, CPU, lora, room=room)
    found = velocities(expert)
    assert (len(reads), len(asked)) == (1, 1)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(expected[0], expected[1]) != bool(skipped)
    held = weakref.ref(expert._model.blocks[0].self_attn.q.weight)
    assert expert.stays
    assert expert.let_go()
    assert (held(), expert.stays, expert.let_go()) == (None, False, False)
    assert torch.equal(velocities(expert)[2], expected[2])
    assert len(reads) == 4


def test_a_model_stays_only_beside_all_that_is_computed_with(other, monkeypatch):
    weights = sum(p.numel() for p in load_transformer(other, dtype=torch.float32, device="cpu").parameters()) * 4
    assert transformer_bytes(other.config, torch.float32) == weights
    latents = torch.randn(1, 16, 2, 4, 4)  # 8 tokens
    needed = weights + 24 * 8 * SIZE.dim * 4 + 2 * 2**30
    reads = counted_reads(monkeypatch)
    for bytes_free, expected in ((needed, 1), (needed - 1, 2)):
        reads.clear()
        expert = OtherExpert(other, CPU, room=lambda _, free=bytes_free: free)
        for _ in range(2):
            with torch.no_grad():
                expert.velocity({}, latents, torch.tensor([900.0]), torch.randn(1, 512, SIZE.text_dim))
        assert len(reads) == expected


def test_a_shortage_beside_a_model_that_stays_costs_no_preview(tmp_path, job, other, monkeypatch):
    job = replace(staged(job, "high", every=3, steps=6, cfg=2.0), other_expert=spec(other))
    job = replace(job, loop=replace(job.loop, steps=3))
    monkeypatch.setattr(previews, "room", lambda _: 10**12)
    run_block, short = OtherExpert._run, []

    def run_out(expert, *args):
        if expert.stays:
            short.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_block(expert, *args)

    monkeypatch.setattr(OtherExpert, "_run", run_out)
    reads = counted_reads(monkeypatch)
    folder, _ = run(tmp_path / "x", job)
    events = EventReader(folder.events_path).read()
    assert short == [1]
    assert len(reads) > 2
    assert [event["step"] for event in events if event["event"] == "preview"] == [3]
    assert not [event for event in events if "memory" in event.get("message", "")]


@pytest.mark.parametrize("stage", ["high", "low"])
def test_a_preview_goes_through_both_experts(job, other, stage):
    trainer = learnt(replace(staged(job, stage, cfg=2.0), other_expert=spec(other)))
    (shot,) = preview_shots(trainer.job)
    found = sample_shots(trainer, [shot], other=OtherExpert(other, CPU))[0]
    trainer.model.eval()
    models = [trainer.model, load_transformer(other, dtype=torch.float32, device="cpu")]
    high, low = models if stage == "high" else models[::-1]
    texts = [load_context(path, "a text")[None] for path in (shot.text_path, shot.negative_path)]
    noise = initial_noise((1, *shot.shape), shot.seed)
    expected = sample(high, low, noise, *texts, shot.sampling)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    swapped = sample(low, high, noise, *texts, shot.sampling)[0]
    assert not torch.allclose(found, swapped, atol=1e-2)
    assert 0 < (schedule(shot.sampling)[:-1] >= 0.875).sum() < 8


def test_a_low_noise_preview_may_then_have_any_size(job, other):
    job = replace(staged(job, "low", width=64, height=48, frames=9), other_expert=spec(other))
    check_previews(job)
    found = sample_shots(learnt(job), preview_shots(job), other=OtherExpert(other, CPU))
    assert found[0].shape == (16, 3, 6, 8)
    assert preview_shots(replace(job, other_expert=None))[0].shape == (16, 2, 4, 4)


def test_a_run_finds_the_newest_lora_of_the_other_stage(tmp_path, job, other):
    own = inspect(Path(job.model.path))
    high = staged(job, "high", every=6, steps=3)
    high = replace(high, previews=replace(high.previews, cfg=3.0), other_expert=spec(other))
    low = replace(high, stage="low", model=replace(job.model, path=str(other.path), identity=other.identity))
    low = replace(low, other_expert=spec(own), timesteps=replace(low.timesteps, sigma_min=0.0, sigma_max=0.875))
    runs = tmp_path / "runs"
    runs.mkdir()

    def folder(job):
        return runs / f"{job.name}_{job.stage}_{job.key}"

    plain, _ = run(folder(high), high)
    assert newest_lora(plain.path, high) is None
    done, lora = run(folder(low), low)
    step, checkpoint = done.checkpoints()[-1]
    os.utime(checkpoint / "adapter.safetensors", (2e9, 2e9))  # the two are written beside each other
    assert newest_lora(plain.path, high) == (lora, 6)
    assert newest_lora(plain.path, replace(high, name="another")) is None
    assert newest_lora(plain.path, replace(high, other_expert=replace(spec(other), identity="0"))) is None
    lora.unlink()
    assert newest_lora(plain.path, high) == (checkpoint / "adapter.safetensors", step)
    said = [e["message"] for e in EventReader(done.events_path).read() if "sampling a preview" in e.get("message", "")]
    assert said == ["step 6: sampling a preview, through both experts (the other one with its LoRA of step 6)"]
    assert "the other one plain" in " ".join(e.get("message", "") for e in EventReader(plain.events_path).read())
    trained = OtherExpert(other, CPU, checkpoint / "adapter.safetensors")
    trainer = learnt(high)
    with_it, without = (
        sample_shots(trainer, preview_shots(high), other=one)[0] for one in (trained, OtherExpert(other, CPU))
    )
    assert not torch.equal(with_it, without)


def test_an_expert_that_is_gone_costs_its_part_and_not_the_run(tmp_path, job, other):
    job = replace(staged(job, "high", every=6, steps=3), other_expert=spec(other))
    other.path.unlink()
    folder, lora = run(tmp_path / "x", job)
    assert lora.is_file()
    assert PreviewFolder.of(RunFolder(folder.path)).read(6).isfinite().all()
    (warning,) = [w for w in read_history(folder.events_path).warnings if "noise expert alone" in w]
    assert "the_other_expert.safetensors" in warning


def test_another_file_than_at_the_start_is_refused(other):
    with pytest.raises(ModelFileError, match="has changed since the run was started"):
        open_other(replace(spec(other), identity="0"), CPU, None)


def test_what_is_no_other_expert_is_refused(tmp_path, job, other):
    own = inspect(Path(job.model.path))
    assert other_spec("high", own, None) is None
    assert other_spec("high", own, other) == spec(other)
    with pytest.raises(ConfigError, match="a single model has none"):
        other_spec("single", own, other)
    named = tmp_path / "wan_low_noise.safetensors"
    named.write_bytes(other.path.read_bytes())
    with pytest.raises(ConfigError, match="is the low noise expert by its name"):
        other_spec("low", own, inspect(named))
    assert other_spec("low", own, inspect(named), allow_other=True) is not None
    small = replace(SIZE, num_layers=1)
    save_file(wan_dit(small, seed=1), tmp_path / "small.safetensors", metadata=dit_metadata(small))
    with pytest.raises(ConfigError, match="their sizes or kinds differ"):
        other_spec("high", own, inspect(tmp_path / "small.safetensors"))
