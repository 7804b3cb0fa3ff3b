"""Memory and speed features, alone and together, put on by a job: the same losses and weights as without them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from wan_train.core.adapters.setup import adapter_state
from wan_train.core.errors import ConfigError
from wan_train.core.facts import num_tokens
from wan_train.core.memory import chunking
from wan_train.core.plan.decision import decide
from wan_train.core.plan.planning import plan_of
from wan_train.core.settings.job import Job
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train import features
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.model import call_block
from wan_train.tests.core.conftest import job_in
from wan_train.tests.core.train.helpers import train_in_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model_path):
    """Losses and LoRA of the job as it is, trained once for all that is to be the same; nobody changes them."""
    folder = tmp_path_factory.mktemp("plain")
    losses, lora, _ = train(folder, job_in(folder, model_path), "plain")
    return losses, lora


def train(tmp_path, job, name):
    """Losses, LoRA and warnings of a run."""
    losses, lora, events = train_in_folder(tmp_path, job, name, CPU)
    return losses, lora, [event["message"] for event in events if event["event"] == "warning"]


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "memory",
    [
        {"checkpointing": False},
        {"keep_attention": 1},
        {"keep_linears": 1, "attention": "default"},
        {"offload_inputs": True},
        {"offload_optimizer": True},
        {"offload_optimizer": True, "streamed_blocks": 1, "offload_inputs": True},
        {"streamed_blocks": 1},
        {"streamed_blocks": 2, "stream_from": "pageable", "offload_inputs": True, "keep_attention": 1},
        {"streamed_blocks": 2, "offload_inputs": True, "keep_linears": 2},
        {"streamed_blocks": 2, "stream_from": "mapped"},
        {"streamed_blocks": 2, "mapped_blocks": 1},
        {"streamed_blocks": 2, "mapped_blocks": 1, "stream_from": "pageable", "offload_inputs": True},
        {"split_blocks": True},
        {"split_blocks": True, "streamed_blocks": 1, "offload_inputs": True, "keep_attention": 1},
        {"attention": "auto"},
    ],
    ids=str,
)
def test_the_same_to_the_bit(tmp_path, job: Job, plain, memory):
    """attention auto is PyTorch's own on the CPU."""
    losses, lora = plain
    found, other, warnings = train(tmp_path, replace(job, memory=MemoryOptions(**memory)), "other")
    assert found == losses
    assert lora.keys() == other.keys()
    assert all(torch.equal(lora[name], other[name]) for name in lora)
    assert warnings == []
    assert (tmp_path / "cache" / "blocks").exists() == (
        memory.get("stream_from") == "mapped" or "mapped_blocks" in memory
    )


@pytest.mark.parametrize(
    "memory",
    [
        {"ffn_pieces": 2},
        {"ffn_pieces": 4, "streamed_blocks": 1, "offload_inputs": True, "keep_attention": 1},
        {"ffn_pieces": 2, "keep_linears": 1},
    ],
    ids=str,
)
def test_the_feed_forward_in_pieces_is_the_same_up_to_rounding(tmp_path, job: Job, memory, monkeypatch):
    """Pieces of two tokens, of clips that have six and eight."""
    monkeypatch.setattr(chunking, "ROUND", 2)
    lengths = []
    cut = chunking.cut
    monkeypatch.setattr(chunking, "cut", lambda *args: [lengths.append(p.shape[1]) or (p, m) for p, m in cut(*args)])
    losses, lora, _ = train(tmp_path, job, "plain")
    assert lengths == []
    found, other, warnings = train(tmp_path, replace(job, memory=MemoryOptions(**memory)), "other")
    assert set(lengths) == ({2, 4} if memory["ffn_pieces"] == 2 else {2})
    assert found == pytest.approx(losses, rel=1e-5)
    assert all(torch.allclose(lora[name], other[name], rtol=1e-3, atol=1e-4) for name in lora)
    assert warnings == []


def test_a_plan_put_on_after_another_has_its_own_pieces(job: Job):
    """As when memory runs out: the seam is the model's own before, and nothing of the old plan stays."""
    prepared = prepare(job, CPU)
    model, calls = prepared.model, []
    for pieces in (2, 1, 4):
        model.run_block = call_block
        memory = MemoryOptions(ffn_pieces=pieces)
        decision = decide(job, inspect(job.model.path), CPU)
        plan = plan_of(replace(job, memory=memory), decision)
        features.apply_features(model, plan, decision, tell=pytest.fail, scratch=None).close()
        calls.append(count_pieces(model))
    assert calls == [2, 1, 4]


def count_pieces(model):
    """Calls of a block's feed-forward in a forward of 512 tokens."""
    block, found = model.blocks[0], []
    hook = block.ffn[0].register_forward_hook(lambda *_: found.append(1))
    dim = model.config.dim
    context = torch.zeros(1, 3, dim)
    with torch.no_grad():
        model.run_block(
            block, torch.zeros(1, 512, dim), torch.zeros(1, 1, 6, dim), model.rope((2, 16, 16), CPU), context
        )
    hook.remove()
    return len(found)


@pytest.mark.grid(3, "compiled")
def test_compiled_it_is_the_same_up_to_rounding(tmp_path, job: Job, monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as importing peft leaves it
    # The graphs of forward and backward as they are: to compile them takes inductor a minute on a CPU.
    monkeypatch.setattr(features, "with_compile", partial(features.with_compile, backend="aot_eager"))
    data = replace(job.data, samples=job.data.samples[:1])  # one size
    job = replace(job, data=data, loop=replace(job.loop, steps=2))
    losses, lora, _ = train(tmp_path, job, "plain")
    found, other, warnings = train(tmp_path, replace(job, memory=MemoryOptions(compile="static")), "compiled")
    assert found == pytest.approx(losses, rel=1e-5)
    assert warnings == []
    assert any((tmp_path / "cache" / "compiled").iterdir())
    for name in lora:
        assert torch.allclose(lora[name], other[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.grid(2)
@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16", "fp16"])
def test_streamed_and_resident_bases_of_one_precision_are_the_same(tmp_path, job: Job, precision):
    job = replace(job, model=replace(job.model, precision=precision), loop=replace(job.loop, steps=2))
    losses, lora, _ = train(tmp_path, job, "resident")
    found, other, _ = train(tmp_path, replace(job, memory=MemoryOptions(streamed_blocks=2)), "streamed")
    assert found == losses
    assert all(torch.equal(lora[name], other[name]) for name in lora)
    plain = train(tmp_path, replace(job, model=replace(job.model, precision="fp32")), "plain")[0]
    assert found != plain
    assert found == pytest.approx(plain, rel=0.05)


def test_a_half_precision_base_keeps_small_gradients(job: Job):
    """At the scale of the run, and not without it: a mean over many latents has gradients that fp16 cannot hold."""
    from wan_train.core.train.run import FP16_LOSS_SCALE
    from wan_train.tests.core.train.helpers import make_trainer

    def step(precision, loss_scale):
        trainer = make_trainer(replace(job, model=replace(job.model, precision=precision)))
        trainer.loss_scale = loss_scale
        for index, parameter in enumerate(trainer.parameters):
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(index))
        return trainer.train_step().read().grad_norm

    exact = step("fp32", 1.0)
    latents = 1e6 / 500  # of a clip, for each that the sample here has
    assert step("fp16", FP16_LOSS_SCALE / latents) == pytest.approx(exact, rel=0.002)
    assert abs(step("fp16", 1.0 / latents) / exact - 1) > 0.005


def test_images_come_many_at_a_time_within_the_budget(tmp_path, job: Job):
    loop = replace(job.loop, batch_size=8, token_budget=8, steps=3)  # two samples have 8 tokens each, one has 6
    one_by_one = replace(loop, batch_size=1, token_budget=0)
    within, alone, together = (
        train(tmp_path, replace(job, loop=options), name)[0]
        for name, options in (("budget", loop), ("alone", one_by_one), ("free", replace(loop, token_budget=0)))
    )
    assert BatchSchedule.of(job.data, loop).batches_per_epoch == len(job.training_samples) == 3
    assert BatchSchedule.of(job.data, replace(loop, token_budget=0)).batches_per_epoch == 2
    assert within != together
    assert len(within) == len(alone) == 3
    assert replace(job, loop=loop).key != job.key
    assert "token_budget has no effect" in " ".join(replace(job, loop=LoopOptions(token_budget=8)).warnings())


def test_what_cannot_be_is_refused(job: Job):
    for name, value in (("keep_attention", 1), ("keep_linears", 2), ("offload_inputs", True), ("streamed_blocks", 1)):
        with pytest.raises(ConfigError, match=f"{name} needs checkpointing"):
            MemoryOptions(checkpointing=False, **{name: value})
    for name in ("keep_attention", "streamed_blocks"):
        with pytest.raises(ConfigError, match=rf"{name} is 3, but mini\.safetensors has 2 blocks"):
            prepare(replace(job, memory=MemoryOptions(**{name: 3})), CPU)
    with pytest.raises(ConfigError, match=r"keep_linears (is 3, but|must be from 0 to 2)"):
        prepare(replace(job, memory=MemoryOptions(keep_linears=3)), CPU)
    with pytest.raises(ConfigError, match="the precision ara and a recovery adapter go together"):
        prepare(replace(job, model=replace(job.model, precision="ara")), CPU)
    with pytest.raises(ConfigError, match="There is no attention 'cudnn' on the device cpu"):
        prepare(replace(job, memory=MemoryOptions(attention="cudnn")), CPU)
    with pytest.raises(ConfigError, match="there is no folder for the blocks"):
        prepare(replace(job, memory=MemoryOptions(streamed_blocks=1, stream_from="mapped")), CPU)
    with pytest.raises(ConfigError, match="mapped_blocks is 1, but there is no folder for the blocks"):
        prepare(replace(job, memory=MemoryOptions(streamed_blocks=2, mapped_blocks=1)), CPU)


def test_blocks_in_parts_keep_no_linear_layers():
    with pytest.raises(ConfigError, match="split_blocks saves what keep_linears would keep"):
        MemoryOptions(split_blocks=True, keep_linears=1)
    with pytest.raises(ConfigError, match="split_blocks needs checkpointing"):
        MemoryOptions(split_blocks=True, checkpointing=False)


def test_pieces_are_a_number_and_for_whole_checkpointed_blocks():
    with pytest.raises(ConfigError, match="ffn_pieces must be at least 1, got 0"):
        MemoryOptions(ffn_pieces=0)
    with pytest.raises(ConfigError, match="ffn_pieces needs checkpointing"):
        MemoryOptions(ffn_pieces=2, checkpointing=False)
    with pytest.raises(ConfigError, match="ffn_pieces is for whole blocks"):
        MemoryOptions(ffn_pieces=2, split_blocks=True)


def test_blocks_from_disk_are_some_of_the_streamed_ones():
    with pytest.raises(ConfigError, match=r"mapped_blocks must be 0 \(none\) or a number of blocks, got -1"):
        MemoryOptions(mapped_blocks=-1)
    with pytest.raises(ConfigError, match="mapped_blocks is 3, but streamed_blocks is 2"):
        MemoryOptions(streamed_blocks=2, mapped_blocks=3)
    with pytest.raises(ConfigError, match="mapped_blocks has no meaning with stream_from mapped"):
        MemoryOptions(streamed_blocks=2, mapped_blocks=1, stream_from="mapped")
    assert MemoryOptions(streamed_blocks=2, mapped_blocks=2).mapped_blocks == 2


def test_memory_has_no_part_in_the_key_of_a_run(job: Job):
    other = MemoryOptions(checkpointing=False, attention="auto", compile="static")
    assert replace(job, memory=other).key == job.key


def test_the_adapter_is_whole_after_streaming(job: Job):
    prepared = prepare(replace(job, memory=MemoryOptions(streamed_blocks=2)), CPU)
    plain = prepare(job, CPU)
    ours, theirs = adapter_state(prepared.model), adapter_state(plain.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    prepared.features.close()


def test_memory_for_the_inputs_of_blocks_is_there_before_the_first_step(job: Job, deep_model):
    """As many buffers as fit any plan, of the largest size: no size makes others in their place."""
    prepared = prepare(replace(job, model=deep_model, memory=MemoryOptions(offload_inputs=True)), CPU)
    config, offload = prepared.model.config, prepared.features.offload
    assert offload is not None
    largest = max(num_tokens(sample.shape, config.patch_size) for sample in job.training_samples)
    pool = offload._pool
    taken = [pool.take(1, pytest.fail) for _ in range(config.num_layers - 2)]
    assert {buffer.bytes.numel() for buffer in taken} == {largest * config.dim * 4}
    assert pool.take(1, pytest.fail).bytes.numel() == 1
