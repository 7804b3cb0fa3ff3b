"""Bytes of blocks by kernels against what the allocator counts, on the CPU: kernels get their memory, and are not launched."""

import gc
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from wan_train.core.memory.recompute import Kept
from wan_train.core.memory.split import with_split
from wan_train.core.plan.block_by_kernels import kernel_block
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.sizes import Trained, working_bytes
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train import kernel_mode
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.layers import PARTS
from wan_train.core.wan.model import call_block, call_part
from wan_train.tests.core.plan.test_estimate import CARD, T2V_14B, inputs, make

jit = pytest.importorskip("triton.runtime.jit")
TOKENS = 1024
CLIP, IMAGE, SMALL = Bucket((16, 9, 60, 104)), Bucket((16, 1, 128, 128)), Bucket((16, 1, 64, 64))


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch):
    """What is kept does not depend on the numbers."""
    from wan_train.core.kernels import ops

    monkeypatch.setattr(ops, "INTERPRETED", True)
    monkeypatch.setattr(jit.JITFunction, "__getitem__", lambda _kernel, _grid: lambda *_args, **_options: None)
    monkeypatch.setattr(jit.JITFunction, "warmup", lambda *_args, **_options: None)


def counted(run):
    """(what `run` returns, the bytes that are left of what it makes, the most that there was of it)."""
    gc.collect()  # else what earlier tests have left may go meanwhile, and be counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sums = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    return result, int(sums[-1]), int(sums.max())


def count(config, dtype, trained, keep, part=None, batch=1):
    """Bytes kept between forward and backward, the most of the backward on top of it, and those of an activation."""
    model = make(config, dtype, trained)
    block = model.blocks[0]
    rerun = kernel_mode.put_on(model)
    x, *others = inputs(model, dtype, batch)
    chosen = (call_block,) if part is None else (call_part,)
    run = partial(
        rerun, *chosen, keep, kernel_mode.last_layer(block, part or "ffn"), block, x, *filter(None, [part]), *others
    )
    trained = [p for name, p in block.named_parameters() if p.requires_grad and (part is None or name.startswith(part))]
    grad = torch.ones_like(x)
    torch.autograd.grad(run(), [x, *trained], grad)  # what is made once: memory for the factors of one block
    y, held, _ = counted(run)
    _, _, peak = counted(lambda: torch.autograd.grad(y, [x, *trained], grad))
    return held - y.nbytes, peak, x.nbytes


def config_of(dim, ffn_dim, heads=2, **changes):
    return WanConfig(dim=dim, ffn_dim=ffn_dim, num_heads=heads, num_layers=1, text_dim=16, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("config", "trained", "batch"),
    [
        (config_of(128, 256), Trained(rank=4), 1),
        (config_of(128, 384, 4), Trained(rank=16), 2),
        (config_of(256, 640), Trained(rank=8, targets=("self_attn",)), 1),
        (config_of(128, 256, variant="i2v", in_dim=36, image_dim=24), Trained(rank=4), 1),
    ],
    ids=["plain", "batch", "self_attn", "image"],
)
def test_what_a_block_keeps_that_keeps_all(dtype, config, trained, batch):
    kept, _, _ = count(config, dtype, trained, "all", batch=batch)
    expected = kernel_block(config, trained, tokens=TOKENS, batch=batch, element_size=dtype.itemsize)
    assert kept == pytest.approx(expected.kept, rel=0.01)


def test_with_dropout():
    trained = Trained(rank=4, dropout=True)
    kept, _, _ = count(config_of(128, 256), torch.float32, trained, "all")
    expected = kernel_block(config_of(128, 256), trained, tokens=TOKENS, element_size=4).kept
    assert kept == pytest.approx(expected, rel=0.01)


def test_the_mask_of_a_dropout_takes_a_byte_on_a_gpu():
    """With two bytes the promise for 14B at 960x960 was 10 % above the peak (benchmarks/results/method-memory-h200.json)."""
    kept = [kernel_block(WanConfig(), Trained(rank=16, dropout=is_on), tokens=3600).kept for is_on in (True, False)]
    inputs_of_layers = 3600 * (7 * 5120 + 13824) + 512 * 2 * 5120  # of the clip, of the text
    assert kept[0] - kept[1] == inputs_of_layers


OTHERS = [
    {"adapter": "dora"},
    {"adapter": "loha"},
    {"adapter": "lokr"},
    {"adapter": "lokr", "options": AdapterOptions(kind="lokr", lokr_full=True)},
    {"adapter": "oft"},
    {"adapter": "oft", "targets": ("self_attn",)},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("others", OTHERS, ids=str)
def test_other_kinds_of_adapters(dtype, others):
    """The inputs that their graphs keep are made again, too."""
    config, trained = config_of(128, 256), Trained(rank=8, **others)
    kept, _, _ = count(config, dtype, trained, "all")
    block = kernel_block(config, trained, tokens=TOKENS, element_size=dtype.itemsize)
    assert kept == pytest.approx(block.kept, rel=0.01)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_other_kinds_with_dropout(kind):
    """In fp32, where a mask on the CPU takes what is counted for it."""
    config, trained = config_of(128, 256), Trained(rank=8, adapter=kind, dropout=True)
    kept, _, _ = count(config, torch.float32, trained, "all")
    assert kept == pytest.approx(kernel_block(config, trained, tokens=TOKENS, element_size=4).kept, rel=0.02)


@pytest.mark.parametrize("part", PARTS)
def test_what_a_part_keeps(part):
    config = config_of(128, 256)
    kept, _, _ = count(config, torch.bfloat16, Trained(rank=4), "all", part)
    assert kept == pytest.approx(kernel_block(config, Trained(rank=4), tokens=TOKENS).by_part[part], rel=0.01)


def test_attention_alone():
    config = config_of(256, 512)
    kept, _, unit = count(config, torch.bfloat16, Trained(rank=4), "attention")
    assert kept == pytest.approx(kernel_block(config, Trained(rank=4), tokens=TOKENS).attention, rel=0.01)
    nothing, _, _ = count(config, torch.bfloat16, Trained(rank=4), "nothing")
    assert nothing < 0.02 * unit


@pytest.mark.parametrize("ffn_dim", [690, 1024])
@pytest.mark.parametrize("keep", ["nothing", "attention", "all"])
@pytest.mark.parametrize("dropout", [False, True])
def test_the_peak_of_a_backward(keep, ffn_dim, dropout):
    """In fp32: products in 16 bits take copies on the CPU. The same whatever is kept."""
    config, trained = config_of(256, ffn_dim), Trained(rank=4, dropout=dropout)
    kept, peak, unit = count(config, torch.float32, trained, keep)
    block = kernel_block(config, trained, tokens=TOKENS, element_size=4)
    whole = block.own(Plan(compile="kernels"), Kept())
    whole += dropout * unit * ffn_dim / 256  # the mask, which a CPU copies as fp32
    assert kept + peak == pytest.approx(whole - unit, rel=0.03)  # the gradient that comes in was there before


@pytest.mark.parametrize("ffn_dim", [690, 1024])
@pytest.mark.parametrize("kind", ["dora", "lokr", "oft", "loha", "oft drops"])
def test_the_peak_of_a_backward_with_other_kinds(kind, ffn_dim):
    kind, _, drops = kind.partition(" ")
    options = AdapterOptions(kind=kind, module_dropout=0.1 if drops else 0.0)
    config, trained = config_of(256, ffn_dim), Trained(rank=4, adapter=kind, options=options)
    kept, peak, unit = count(config, torch.float32, trained, "nothing")
    block = kernel_block(config, trained, tokens=TOKENS, element_size=4)
    whole = block.own(Plan(compile="kernels"), Kept()) + working_bytes(config, trained, 4)
    assert kept + peak == pytest.approx(whole - unit, rel=0.08 if kind == "loha" else 0.04)


@pytest.mark.parametrize("ffn_dim", [690, 1024])
@pytest.mark.parametrize("plan", [Plan(ffn_pieces=4), Plan(split_blocks=True)], ids=["pieces", "parts"])
@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "oft", "loha"])
def test_the_peak_of_a_lean_backward(plan, ffn_dim, kind):
    config, trained = config_of(256, ffn_dim), Trained(rank=4, adapter=kind)
    model = make(config, torch.float32, trained)
    rerun = kernel_mode.put_on(model)
    run_block = kernel_mode.whole_blocks(rerun, checkpointing=True, pieces=plan.ffn_pieces)
    if plan.split_blocks:
        run_block = with_split(kernel_mode.parts_of_blocks(rerun), PARTS)
    x, *others = inputs(model, torch.float32)
    grad = torch.ones_like(x)
    run_block(model.blocks[0], x, *others).backward(grad)  # gradients are there, and what is made once
    y, held, _ = counted(lambda: run_block(model.blocks[0], x, *others))
    _, _, peak = counted(lambda: y.backward(grad))
    block = kernel_block(config, trained, tokens=TOKENS, element_size=4)
    whole = block.own(plan, Kept()) + working_bytes(config, trained, 4)
    taken = held - y.nbytes + peak
    assert taken == pytest.approx(whole - x.nbytes, rel=0.03 if kind == "lora" else 0.25)
    assert taken < 1.03 * (whole - x.nbytes)  # of others rather too much is promised


def at(bucket, graphs=False, **plan):
    return estimate(Task(sizes=T2V_14B, graphs=graphs), bucket, Plan(compile="kernels", **plan), CARD)


def test_blocks_by_kernels_take_half_of_what_others_take():
    unit = 14040 * 5120 * 2
    kernels, compiled, eager = (
        estimate(Task(sizes=T2V_14B), CLIP, Plan(compile=mode), CARD) for mode in ("kernels", "static", "off")
    )
    assert eager.vram - kernels.vram > 15 * unit
    assert compiled.vram - kernels.vram > 12 * unit
    assert kernels.seconds < 0.9 * eager.seconds


def test_what_is_kept_saves_time_for_memory():
    nothing, attention, all_kept = (
        at(CLIP, **kept) for kept in ({}, {"keep_attention": 40}, {"keep_attention": 40, "keep_linears": 40})
    )
    assert nothing.vram < attention.vram < all_kept.vram
    assert nothing.seconds > attention.seconds > all_kept.seconds
    block = kernel_block(T2V_14B, Trained(), tokens=14040)
    assert all_kept.vram - nothing.vram == pytest.approx(39 * block.kept, rel=0.02)
    without = at(CLIP, checkpointing=False)
    assert (without.vram, without.seconds) == (all_kept.vram, all_kept.seconds)
    for lean in ({"split_blocks": True}, {"ffn_pieces": 4}):
        found = at(CLIP, **lean)
        assert found.vram < nothing.vram
        assert nothing.seconds < found.seconds < 1.2 * nothing.seconds


def test_a_plan_keeps_more_by_itself():
    """On a card of 16 GB, of a model that does not fit."""
    task = Task(sizes=T2V_14B)
    card = replace(CARD, free=16 * 2**30)

    def choose(mode):
        plan = Plan(precision="fp8", compile=mode)
        chosen = Planner(
            task=task, buckets=[CLIP], card=card, plan=plan, options=MemoryOptions(stream_from="pinned")
        ).choose()
        assert chosen is not None
        return chosen

    kernels, eager = choose("kernels"), choose("off")
    assert eager.plan.keep_linears == 0
    assert kernels.plan.keep_attention == 40
    assert kernels.plan.keep_linears > 0
    assert kernels.seconds < 0.85 * eager.seconds


def test_graphs_save_the_hosts_time():
    fast = replace(CARD, matmul=800e12, attention=600e12, bandwidth=3e12, launch_s=10e-6)
    plan = Plan(compile="kernels", keep_linears=40, keep_attention=40)
    with_graphs, without = (
        estimate(Task(sizes=T2V_14B, graphs=graphs), SMALL, plan, fast).seconds for graphs in (True, False)
    )
    assert with_graphs < 0.7 * without
