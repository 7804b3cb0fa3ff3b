"""The mode "kernels" with plain arithmetic in the place of Triton's, on the CPU: the same losses and weights as without it."""

import copy
from dataclasses import replace

import pytest
import torch
from wan_train.core.memory import chunking, offload_results
from wan_train.core.memory.precisions.fp8_compute import Fp8ComputeLinear
from wan_train.core.memory.products import dense_product
from wan_train.core.memory.recompute import Kept, mark_kept
from wan_train.core.plan.decision import decide, wanted_modes
from wan_train.core.plan.planning import plan_of
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.settings.tread import TreadOptions
from wan_train.core.train import features, kernel_mode
from wan_train.core.train.prepare import needs_of, prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.model import call_block
from wan_train.core.wan.ops import PLAIN
from wan_train.tests.core.memory.helpers import SHAPES, make_model, plain_steps, step
from wan_train.tests.core.train.helpers import train_in_folder, with_class

pytest.importorskip("triton")
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def plain_kernels(monkeypatch):
    """KernelOps takes no tensor on the CPU and leaves it to the plain code; neither do products by kernels."""
    from wan_train.core.kernels import available, linears

    monkeypatch.setattr(offload_results, "LEAST", 1)

    def make_product(layer, ops):
        return None if isinstance(layer, Fp8ComputeLinear) else dense_product(layer)

    monkeypatch.setattr(available, "kernels_problem", lambda _device: None)
    monkeypatch.setattr(linears, "make_product", make_product)


@pytest.fixture
def functions(monkeypatch):
    """The blocks' own functions, with what `reference` has in the place of kernels."""
    from wan_train.core.kernels import available
    from wan_train.tests.core.kernels import reference

    reference.put_in_place(monkeypatch)
    monkeypatch.setattr(offload_results, "LEAST", 1)
    monkeypatch.setattr(available, "kernels_problem", lambda _device: None)


def train(tmp_path, job, name):
    losses, lora, events = train_in_folder(tmp_path, job, name, CPU)
    return losses, lora, [event["message"] for event in events if event["event"] == "warning"]


@pytest.mark.grid(3)
@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"checkpointing": False},
        {"keep_attention": 1},
        {"keep_linears": 1},
        {"streamed_blocks": 2, "offload_inputs": True},
        {"streamed_blocks": 2, "keep_linears": 2, "offload_inputs": True},
        {"streamed_blocks": 1, "keep_attention": 2, "stream_from": "pageable"},
        {"split_blocks": True},
        {"split_blocks": True, "streamed_blocks": 1, "offload_inputs": True, "keep_attention": 1},
        {"ffn_pieces": 2},
        {"ffn_pieces": 4, "streamed_blocks": 1, "offload_inputs": True, "keep_attention": 1},
        {"ffn_pieces": 2, "keep_linears": 1},
        {"offload_linears": 1},
        {"streamed_blocks": 2, "offload_inputs": True, "offload_linears": 2, "ffn_pieces": 2},
    ],
    ids=str,
)
def test_it_is_the_same_up_to_rounding(tmp_path, job: Job, memory, monkeypatch):
    monkeypatch.setattr(chunking, "ROUND", 2)
    job = replace(job, loop=replace(job.loop, steps=2))
    losses, lora, _ = train(tmp_path, job, "plain")
    memory = MemoryOptions(**memory, compile="kernels")
    found, other, warnings = train(tmp_path, replace(job, memory=memory), "kernels")
    assert found == pytest.approx(losses, rel=1e-5)
    assert warnings == []
    for name in lora:
        assert torch.allclose(lora[name], other[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("memory", [{}, {"streamed_blocks": 2, "offload_inputs": True}, {"keep_linears": 1}], ids=str)
def test_with_forwards_of_the_base_between(tmp_path, job: Job, memory):
    """The base's forward leaves the LoRA out of the kernels, too."""
    samples = tuple(with_class(tmp_path, sample) for sample in job.data.samples)
    regularizers = RegularizerOptions(output_preservation=1.0, blank_preservation=1.0)
    job = replace(job, data=replace(job.data, samples=samples), regularizers=regularizers)
    losses, lora, _ = train(tmp_path, job, "plain")
    found, other, _ = train(tmp_path, replace(job, memory=MemoryOptions(**memory, compile="kernels")), "kernels")
    assert found == pytest.approx(losses, rel=1e-4)
    for name in lora:
        assert torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4), name


@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("memory", [{}, {"streamed_blocks": 2, "offload_inputs": True}, {"keep_linears": 1}], ids=str)
def test_with_tokens_that_go_past_a_block(tmp_path, job: Job, memory):
    """Two samples in a batch, of which each keeps tokens, and so positions, of its own."""
    job = replace(job, loop=replace(job.loop, steps=3, batch_size=2), tread=TreadOptions(routes="1 to 1: 0.5"))
    losses, lora, _ = train(tmp_path, job, "plain")
    found, other, _ = train(tmp_path, replace(job, memory=MemoryOptions(**memory, compile="kernels")), "kernels")
    assert found == pytest.approx(losses, rel=1e-4)
    for name in lora:
        assert torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4), name


@pytest.mark.grid(2)
@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("precision", ["fp8", "fp8_compute", "int8", "nf4", "int4_svd", "fp16"])
def test_every_precision(tmp_path, job: Job, precision):
    job = replace(job, model=replace(job.model, precision=precision), loop=replace(job.loop, steps=2))
    losses, _, _ = train(tmp_path, job, "plain")
    found, _, _ = train(tmp_path, replace(job, memory=MemoryOptions(compile="kernels", keep_linears=1)), "kernels")
    assert found == pytest.approx(losses, rel=0.002)


def put_on(model, **memory):
    """The model by kernels, with checkpointing; what runs its blocks goes through `kernel_mode` alone."""
    rerun = kernel_mode.put_on(model)
    model.run_block = kernel_mode.whole_blocks(rerun, checkpointing=True, **memory)
    return rerun


@pytest.mark.grid(3)
@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("kept", [Kept(), Kept(4, 0), Kept(4, 3)], ids=str)
@pytest.mark.parametrize("adapter", [{}, {"targets": ("cross_attn",)}, {"quant": "Q8_0"}], ids=str)
def test_gradients(kept, adapter):
    model = make_model(**adapter)
    expected = plain_steps(model)
    put_on(model)
    mark_kept(list(model.blocks), kept)
    for seed, shape in enumerate(SHAPES):
        for found, other in zip(step(model, shape, seed), expected[seed], strict=True):
            assert torch.allclose(found, other, rtol=1e-3, atol=1e-6)


@pytest.mark.grid(3)
@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("kept", [Kept(), Kept(3, 0), Kept(3, 2)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.5}, {"kind": "tlora", "rank": 6}],
    ids=str,
)
def test_dropout_drops_the_same_when_a_block_runs_again(kept, options):
    """The forward's masks come again: the gradient is that of the loss."""
    model = make_model(**options, targets=("self_attn", "cross_attn", "ffn"))
    torch.manual_seed(3)
    expected = step(copy.deepcopy(model), SHAPES[0], all_learn=False)
    put_on(model)
    mark_kept(list(model.blocks), kept)
    torch.manual_seed(3)
    for found, other in zip(step(model, SHAPES[0], all_learn=False), expected, strict=True):
        assert torch.allclose(found, other, rtol=1e-3, atol=1e-6)


ADAPTERS = {
    "dora": {"kind": "dora"},
    "dora drops": {"kind": "dora", "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.3},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr drops": {"kind": "lokr", "dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.3},
    "oft": {"kind": "oft", "rank": 4, "oft_constraint": 1.0},
    "tlora drops": {"kind": "tlora", "rank": 4, "dropout": 0.1, "rank_dropout": 0.3, "module_dropout": 0.3},
    "drops": {"dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.3},
}


@pytest.mark.usefixtures("functions")
@pytest.mark.grid(6)
@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"checkpointing": False},
        {"keep_attention": 1},
        {"streamed_blocks": 2, "offload_inputs": True},
        {"split_blocks": True, "streamed_blocks": 1, "offload_inputs": True, "keep_attention": 1},
        {"ffn_pieces": 2},
        {"streamed_blocks": 2, "offload_inputs": True, "keep_attention": 2, "offload_linears": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ADAPTERS)
def test_every_adapter_trains_the_same_by_the_blocks_functions(tmp_path, job: Job, way, memory, monkeypatch):
    if way.endswith("drops") and "ffn_pieces" in memory:
        pytest.skip("each piece is drawn for by itself")
    monkeypatch.setattr(chunking, "ROUND", 2)
    adapter = AdapterOptions(**{"rank": 2, "alpha": 4.0, **ADAPTERS[way]})
    job = replace(job, adapter=adapter, loop=replace(job.loop, steps=3))
    losses, lora, _ = train(tmp_path, job, "plain")
    found, other, warnings = train(tmp_path, replace(job, memory=MemoryOptions(**memory, compile="kernels")), "kernels")
    assert found == pytest.approx(losses, rel=1e-4)
    assert warnings == []
    for name in lora:
        assert torch.allclose(lora[name], other[name], rtol=1e-2, atol=3e-4), name


@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("way", ["dora drops", "lokr drops", "oft", "tlora drops", "drops"])
def test_taken_off_an_adapter_of_any_kind_is_what_it_was(way):
    model = make_model(**ADAPTERS[way], targets=("self_attn", "cross_attn", "ffn"))
    forwards = {name: vars(layer).get("forward") for name, layer in model.named_modules()}
    torch.manual_seed(3)
    expected = step(copy.deepcopy(model), SHAPES[0], all_learn=False)
    put_on(model)
    kernel_mode.take_off(model)
    model.run_block = call_block
    after = {name: vars(layer).get("forward") for name, layer in model.named_modules()}
    assert {name: getattr(each, "__func__", each) for name, each in after.items()} == {
        name: getattr(each, "__func__", each) for name, each in forwards.items()
    }
    torch.manual_seed(3)
    for found, other in zip(step(model, SHAPES[0], all_learn=False), expected, strict=True):
        assert torch.allclose(found, other, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("plain_kernels")
def test_taken_off_the_model_is_what_it_was():
    model = make_model()
    attend, self_attention = model.attend, model.blocks[0].self_attn
    before = plain_steps(model, SHAPES[:1])
    put_on(model)
    assert model.ops is not PLAIN
    assert self_attention.attend.function is not attend
    kernel_mode.take_off(model)
    kernel_mode.take_off(model)
    model.run_block = call_block
    assert model.ops is PLAIN
    assert model.attend is attend
    assert self_attention.attend.function is attend
    for found, other in zip(plain_steps(model, SHAPES[:1])[0], before[0], strict=True):
        assert torch.allclose(found, other, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("plain_kernels")
def test_plans_follow_each_other(job: Job):
    """As when memory runs out: by kernels, without them, and by kernels again."""
    model = prepare(replace(job, memory=MemoryOptions(compile="kernels")), CPU).model
    attends = []
    for mode in ("kernels", "off", "kernels"):
        model.run_block = call_block
        decision = decide(replace(job, memory=MemoryOptions(compile=mode)), inspect(job.model.path), CPU)
        features.apply_features(model, plan_of(job, decision), decision, tell=pytest.fail, scratch=None).close()
        attends.append(model.attend)
        assert (model.ops is PLAIN) == (mode == "off")
    assert attends[1].__module__.endswith("layers")  # none of those before is around it


@pytest.mark.usefixtures("functions")
def test_sizes_of_clips_keep_theirs_in_different_places(job: Job):
    """One size keeps all on the device, another moves some: together they are more than the model has blocks."""
    expected = prepare(replace(job, memory=MemoryOptions(compile="kernels", checkpointing=True)), CPU).model
    model = copy.deepcopy(expected)
    model.run_block = call_block
    decision = decide(replace(job, memory=MemoryOptions(compile="kernels")), inspect(job.model.path), CPU)
    kept = {8: Kept(2, 0, 2), 4: Kept(2, 2, 0)}
    plan = replace(plan_of(job, decision), checkpointing=True, keep_attention=2, offload_linears=2)
    put_on = features.apply_features(model, plan, decision, tell=pytest.fail, scratch=None, kept=kept)
    for frames in (2, 1, 2):
        given = torch.randn(1, 16, frames, 4, 4), torch.tensor([500.0]), torch.randn(1, 512, job.data.text_dim)
        found, wanted = ([], [])
        for one, grads in ((model, found), (expected, wanted)):
            one(*given).square().mean().backward()
            for parameter in one.parameters():
                if parameter.requires_grad:
                    grads.append(parameter.grad)
                    parameter.grad = None
        assert all(map(torch.equal, found, wanted))
        assert put_on.offload.bytes_on_host > 0
    put_on.close()


def test_on_a_gpu_blocks_run_by_kernels_unless_something_else_is_chosen():
    assert wanted_modes(MemoryOptions(), GPU) == ("kernels", "off")
    assert wanted_modes(MemoryOptions(), CPU) == ("off",)
    for chosen in ("off", "static", "dynamic", "kernels"):
        memory = MemoryOptions(compile=chosen)
        assert wanted_modes(memory, GPU) == wanted_modes(memory, CPU) == (chosen,)


def test_where_they_do_not_run_the_run_goes_on_and_says_what_is_lost(tmp_path, job: Job):
    job = replace(job, loop=replace(job.loop, steps=1))
    losses, _, _ = train(tmp_path, job, "plain")
    found, _, warnings = train(tmp_path, replace(job, memory=MemoryOptions(compile="kernels")), "kernels")
    assert found == losses
    (sentence,) = warnings
    assert "run on a GPU, not on the device cpu" in sentence
    assert "a step takes" in sentence


def test_without_triton_it_says_what_to_install(job: Job, monkeypatch):
    import sys

    from wan_train.core.kernels import available

    available.kernels_problem.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "wan_train.core.kernels.elementwise", None)  # as where triton cannot be imported
    job = replace(job, memory=MemoryOptions(compile="kernels"))
    decision = decide(job, inspect(job.model.path), CPU)
    assert decision.modes == ("off",)
    available.kernels_problem.cache_clear()
    assert "triton-windows" in decision.warnings[0]


def test_memory_has_no_part_in_the_key_of_a_run(job: Job):
    assert replace(job, memory=MemoryOptions(compile="kernels")).key == job.key


@pytest.fixture
def launched(monkeypatch):
    """What Triton would be asked to compile: kernels, types and constants. None is launched."""
    from wan_train.core.kernels import elementwise, norms, ops, rotary, rows

    found = set()

    def launch(kernel, grid, args, constants, warps):
        kinds = [each.dtype if isinstance(each, torch.Tensor) else type(each) for each in args]
        found.add((id(kernel), kernel.__name__, constants, warps, *kinds))

    for module in (elementwise, norms, rotary, rows):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(ops, "INTERPRETED", True)
    return found


@pytest.mark.grid(4)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int8", "fp8_compute"])
@pytest.mark.parametrize("way", ["lora", "drops", "dora", "lokr", "oft"])
def test_what_is_made_ready_is_what_a_step_needs(job: Job, launched, precision, way):
    """Also of blocks that run again, and of the adapter's absence."""
    from wan_train.core.kernels.warm import kernels_of

    adapter = AdapterOptions(**{"rank": 4, "alpha": 4.0, **ADAPTERS.get(way, {})})
    job = replace(job, model=replace(job.model, precision=precision), adapter=adapter)
    prepared = prepare(job, CPU)
    model = prepared.model.train()
    for act in kernels_of(needs_of(job, model.config, CPU, prepared.dtype)):
        act()
    ready = set(launched)
    launched.clear()
    put_on(model)
    for kept in (Kept(), Kept(2, 0), Kept(2, 1)):
        mark_kept(list(model.blocks), kept)
        loss = model(torch.randn(1, 16, 2, 4, 4), torch.tensor([400.0]), torch.randn(1, 5, model.config.text_dim))
        loss.sum().backward()
    with torch.no_grad():
        model(torch.randn(1, 16, 2, 4, 4), torch.tensor([400.0]), torch.randn(1, 5, model.config.text_dim))
    assert len(launched) >= 10
    assert launched <= ready, [key[1:] for key in launched - ready]
