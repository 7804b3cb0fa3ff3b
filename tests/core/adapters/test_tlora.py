"""T-LoRA: how many ranks a sample has at its noise, and that it is a LoRA in everything else."""

import copy
import logging
import math

import pytest
import torch
from wan_train.core.adapters.formats import read_lora
from wan_train.core.adapters.kind import ADAPTER_KINDS
from wan_train.core.adapters.kinds.lora import layers
from wan_train.core.adapters.peft_hooks import factors_of
from wan_train.core.adapters.rank_gate import RankGate, set_noise_window
from wan_train.core.adapters.setup import adapter_modules, adapter_state, add_adapter, write_adapter
from wan_train.core.adapters.switch import without_adapter
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.compile import with_compile
from wan_train.core.memory.graphs import Graphs
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.adapters.test_drops import CONFIG, clip, net
from wan_train.tests.core.memory.test_graphs import Recorder

TLORA = {"kind": "tlora", "rank": 8}


def ranks_at(sigmas, *, rank=8, min_rank=0, power=1.0, window=(0.0, 1.0)):
    gate = RankGate(min_rank, power).train()
    gate.ranks.add(rank)
    gate.low, gate.high = window
    gate(torch.tensor(sigmas)[:, None] * 1000)
    left_out = gate.left_out[rank]
    assert left_out.shape == (len(sigmas), 1, rank)
    assert torch.equal(left_out, left_out.cummax(2).values), "the first ranks are those that stay"
    return (~left_out).sum((1, 2)).tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"min_rank": 1}, {"min_rank": 3, "power": 2.0}, {"power": 0.5, "rank": 16}, {"window": (0.875, 1.0)}],
    ids=str,
)
def test_the_number_of_ranks_is_that_of_the_paper(options):
    rank, low, high = options.get("rank", 8), *options.get("window", (0.0, 1.0))
    least = options.get("min_rank") or rank // 2
    sigmas = [low + (high - low) * share for share in (0.013, 0.17, 0.31, 0.47, 0.59, 0.83, 0.97)]
    wanted = []
    for sigma in sigmas:
        place = (sigma - low) / (high - low)
        wanted.append(math.floor((1 - place) ** options.get("power", 1.0) * (rank - least)) + least)
    assert ranks_at(sigmas, **options) == wanted
    assert ranks_at([high, low], **options) == [least, rank]
    assert len(set(wanted)) > 2


def test_a_smaller_rank_than_the_least_is_trained_whole():
    assert ranks_at([0.0, 1.0], rank=2, min_rank=5) == [2, 2]
    assert ranks_at([0.0, 1.0], rank=1) == [1, 1]


def test_samples_of_one_batch_have_the_ranks_of_their_own_noise():
    model, _ = net(**TLORA)
    layer = model.blocks[0].ffn[0]
    model.rank_gate(torch.tensor([[250.0], [1000.0]]))
    x = torch.randn(2, 6, 32)
    factors = factors_of(layer)
    with torch.no_grad():
        for row, number in ((0, 7), (1, 4)):
            hidden = x[row] @ factors.down[:number].T
            wanted = factors.base(x[row]) + factors.scale * hidden @ factors.up[:, :number].T
            assert torch.allclose(layer(x)[row], wanted, atol=1e-5)


def test_ranks_that_are_left_out_are_not_trained():
    model, _ = net(**TLORA)
    latents, _, context = clip(1)
    model(latents, torch.tensor([1000.0]), context).square().mean().backward()
    for layer in layers(model).values():
        up = factors_of(layer).up.grad
        assert bool((up[:, 4:] == 0).all())
        assert bool((up[:, :4] != 0).any())


def test_a_frame_that_is_given_clean_does_not_count():
    gate = RankGate(1, 1.0).train()
    gate.ranks.add(8)
    gate(torch.tensor([[0.0, 1000.0, 1000.0]]))
    assert int((~gate.left_out[8]).sum()) == 1


def test_an_expert_has_all_ranks_at_its_own_lowest_noise():
    model, _ = net(**TLORA)
    set_noise_window(model, 0.875, 1.0)
    model.rank_gate(torch.tensor([[875.0], [937.5], [1000.0]]))
    assert (~model.rank_gate.left_out[8]).sum((1, 2)).tolist() == [8, 6, 4]
    plain, _ = net()
    set_noise_window(plain, 0.875, 1.0)  # nothing to set


def test_whoever_generates_has_all_ranks():
    model, _ = net(**TLORA)
    plain, _ = net(**TLORA)
    for layer in layers(plain).values():
        layer.rank_drops = None
    with torch.no_grad():
        assert torch.allclose(model.eval()(*clip()), plain.eval()(*clip()), atol=1e-5)
        assert not torch.allclose(model.train()(*clip()), model.eval()(*clip()), atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"ranks": "ffn = 3"}, {"dropout": 0.3}], ids=str)
def test_checkpointing_gives_the_same_gradients_at_every_noise(options):
    model, _ = net(**TLORA, **options)
    found = []
    for wrap in (lambda run: run, with_checkpointing):
        run = copy.deepcopy(model)
        assert run.rank_gate is not model.rank_gate
        assert all(vars(layer.rank_drops[-1])["gate"] is run.rank_gate for layer in layers(run).values())
        run.run_block = wrap(run.run_block)
        torch.manual_seed(4)
        prediction = run(*clip())
        with torch.no_grad(), without_adapter(run):  # as a regulariser asks for it, of the same batch
            run(*clip())
        prediction.square().mean().backward()
        found.append([weight.grad for weight in run.parameters() if weight.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_recorded_step_follows_the_noise():
    model, parameters = net(**TLORA)
    told = []
    graphs = Graphs(type(model).forward.__get__(model), [p for _, p in parameters], tell=told.append, record=Recorder())
    latents, _, context = clip(1)
    for step in range(6):
        timesteps = torch.tensor([150.0 + 150 * step])
        found = []
        for run in (graphs, type(model).forward.__get__(model)):
            model.zero_grad(set_to_none=True)
            run(latents, timesteps, context).square().mean().backward()
            found.append([p.grad.clone() for _, p in parameters])
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)
    assert graphs._record.acts == 2
    assert not told


def test_rows_start_at_right_angles_as_long_as_usual():
    made = make_fresh(tlora_orthogonal=True)
    assert adapter_state(made).keys() == adapter_state(make_fresh(kind="lora")).keys()
    for layer in layers(made).values():
        down = factors_of(layer).down
        assert torch.allclose(down @ down.T, torch.eye(8) / 3, atol=1e-5)
        assert not factors_of(layer).up.any()
    for one, other in zip(
        layers(make_fresh(tlora_orthogonal=False)).values(), layers(make_fresh(kind="lora")).values(), strict=True
    ):
        assert torch.equal(factors_of(one).down, factors_of(other).down)
    lengths = factors_of(layers(make_fresh(kind="lora"))["blocks.0.ffn.2"]).down.detach().square().sum(1)
    assert float(lengths.mean()) == pytest.approx(1 / 3, rel=0.1)


def make_fresh(**options):
    model = WanTransformer(CONFIG)
    add_adapter(model, AdapterOptions(**{**TLORA, **options}), seed=3)
    return model


def test_its_file_is_a_loras_and_the_model_knows_what_it_carries(tmp_path):
    model, _ = net(**TLORA)
    assert read_lora(write_adapter(tmp_path / "x.safetensors", model, metadata={})).ranks == (8,)
    assert len(adapter_modules(model)) == 20
    assert len(ADAPTER_KINDS.get("tlora").layers(model)) == 20
    assert not ADAPTER_KINDS.get("tlora").layers(net()[0])


def test_compiled_blocks_follow_the_noise(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep each record
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, _ = net(**TLORA)
    found = {}
    for name in ("plain", "compiled"):
        run = copy.deepcopy(model)
        if name == "compiled":
            block = with_checkpointing(run.run_block)
            run.run_block = with_compile(block, tell=pytest.fail, backend="aot_eager")
        found[name] = []
        for sigma in (100.0, 500.0, 950.0):
            latents, _, context = clip(1)
            run.zero_grad(set_to_none=True)
            run(latents, torch.tensor([sigma]), context).square().mean().backward()
            found[name] += [weight.grad for weight in run.parameters() if weight.requires_grad]
    for one, other in zip(found["plain"], found["compiled"], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()
