import logging
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks
from wan_train.core.memory import compile as compiling
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.compile import compiler_problem, use_compile_cache, with_compile
from wan_train.core.memory.recompute import Kept, with_selective_recompute
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import SHORT_CONFIG, assert_same, forward_loss, make_model, plain_steps, step

CPU = torch.device("cpu")
SHAPES = ((1, 16, 2, 4, 6), (1, 16, 1, 4, 4), (1, 16, 3, 6, 4), (1, 16, 2, 4, 6))


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep each record
    with torch._dynamo.config.patch(recompile_limit=8):
        yield
    torch._dynamo.reset()


def same_steps(model, expected):
    for seed, (shape, reference) in enumerate(zip(SHAPES, expected, strict=True)):
        assert_same(step(model, shape, seed), reference)


@pytest.mark.parametrize(("dynamic", "num_graphs"), [(False, 3), (None, 2), (True, 1)])
def test_all_blocks_share_a_graph_for_each_size_or_for_all(dynamic, num_graphs):
    """Four steps of three sizes; the blocks carry peft's LoRA and are checkpointed. fullgraph forbids breaks."""
    model = make_model()
    expected = plain_steps(model, SHAPES)
    counter = CompileCounterWithBackend("eager")
    run_block = with_checkpointing(call_block)
    model.run_block = with_compile(run_block, tell=pytest.fail, dynamic=dynamic, backend=counter)
    same_steps(model, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs
    assert counter.frame_count >= num_graphs


def test_blocks_that_keep_attention_and_validation_take_a_graph_each():
    model = make_model()
    expected = step(model, SHAPES[0])
    run_block = with_selective_recompute(call_block, model.blocks, Kept(2))
    model.run_block = with_compile(run_block, tell=pytest.fail, backend="eager")
    assert_same(step(model, SHAPES[0]), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    with torch.no_grad():
        forward_loss(model, SHAPES[0])
        forward_loss(model, SHAPES[0], seed=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


@pytest.mark.grid(3, "compiled")
def test_a_quantized_block_is_recomputed_like_any_other():
    """Its dequantized weights are not kept, nor what they give; one of the blocks keeps its attention."""
    kept = {}
    for quant in (None, "Q8_0"):
        model = make_model(SHORT_CONFIG, torch.bfloat16, quant)
        run_block = with_selective_recompute(call_block, list(model.blocks), Kept(1))
        model.run_block = with_compile(run_block, tell=pytest.fail, backend="aot_eager_decomp_partition")
        kept[quant] = saved_bytes(model)
        torch._dynamo.reset()
    dense = 2 * sum(layer.numel() for name, layer in model.named_parameters() if name.endswith("weight"))
    assert kept["Q8_0"] < kept[None] + 0.2 * dense


@pytest.mark.parametrize("quant", [None, "Q8_0"])
def test_traces_are_kept_over_starts(quant):
    """PyTorch keeps the trace of a block of each kind, and tells those apart that keep something else."""
    traces = pytest.importorskip("torch._functorch._aot_autograd.autograd_cache")
    if not hasattr(traces, "_collect_context_fn_hashes"):
        pytest.skip("this PyTorch keeps no traces of checkpoints")
    policies = []

    def look(graph_module, inputs):
        del inputs
        traces.check_cacheable(graph_module)
        traces.FxGraphCache._check_can_cache(graph_module)
        policies.append(traces._collect_context_fn_hashes(graph_module))
        return graph_module.forward

    model = make_model(SHORT_CONFIG, torch.bfloat16, quant)
    for kept in (Kept(1, 0), Kept(1, 1)):
        run_block = with_selective_recompute(call_block, list(model.blocks), kept, width=SHORT_CONFIG.dim)
        model.run_block = with_compile(run_block, tell=pytest.fail, backend=look)
        step(model, SHAPES[0])
        torch._dynamo.reset()
    nothing, attention, _, products = policies
    assert len({*nothing, *attention, *products}) == 3


def saved_bytes(model):
    """What autograd keeps from a forward, but for the model's own tensors."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            seen[tensor.data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward_loss(model, SHAPES[0]).backward()
    return sum(storage.nbytes() for storage in seen.values())


def test_checkpoint_around_the_compiled_block_gives_the_same():
    """The order that streaming needs: its Python code runs between checkpoint and compiled block."""
    model = make_model()
    expected = step(model, SHAPES[0])
    model.run_block = with_checkpointing(with_compile(call_block, tell=pytest.fail, backend="aot_eager"))
    for result, reference in zip(step(model, SHAPES[0]), expected, strict=True):
        torch.testing.assert_close(result, reference)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_limit_of_graphs_is_told_once_and_the_step_goes_on(monkeypatch):
    monkeypatch.setattr(compiling, "GRAPH_LIMIT", 2)
    model = make_model()
    expected = plain_steps(model, SHAPES)
    told = []
    with torch._dynamo.config.patch(recompile_limit=1):
        model.run_block = with_compile(call_block, tell=told.append, backend="eager")
        same_steps(model, expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert len(told) == 1
    assert "more than 2 compiled variants" in told[0]


def test_limit_of_dynamo_is_raised():
    model = make_model()
    with_compile(model.run_block, tell=pytest.fail)
    assert torch._dynamo.config.recompile_limit == compiling.GRAPH_LIMIT > 8


def test_failed_compilation_is_told_once_and_the_run_goes_on_uncompiled():
    model = make_model()
    expected = plain_steps(model, SHAPES)
    told, tries = [], []

    def broken(graph_module, inputs):
        tries.append(graph_module)
        raise RuntimeError("no compiler found")

    model.run_block = with_compile(with_checkpointing(call_block), tell=told.append, backend=broken)
    same_steps(model, expected)
    assert len(tries) == 1
    assert len(told) == 1
    assert "no compiler found" in told[0]
    assert "The run goes on without compilation" in told[0]


def test_other_errors_of_the_block_are_not_swallowed():
    def fails(block, *inputs):
        raise ValueError(f"{type(block).__name__} cannot take {len(inputs)} inputs")

    model = make_model()
    model.run_block = with_compile(fails, tell=[].append, backend="eager")
    with pytest.raises(ValueError, match="WanBlock cannot take 4 inputs"):
        step(model, SHAPES[0])


def test_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        problem = compiler_problem(CPU)
    assert problem is not None
    assert "torch.compile does not work on the device cpu" in problem
    assert "It needs a C++ compiler (Linux: g++" in problem


@pytest.mark.grid(3, "compiled")
def test_compiler_that_works_is_no_problem():
    """Needs a C++ compiler, as PyTorch's own tests do; seconds at the first time, then the cache has the result."""
    assert compiler_problem(CPU) is None


def test_cache_folder_is_the_one_pytorch_uses_unless_one_was_set(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder = tmp_path / "compiled"
    assert use_compile_cache(folder) == folder == Path(cache_dir())
    assert use_compile_cache(tmp_path / "other") == folder == Path(cache_dir())
