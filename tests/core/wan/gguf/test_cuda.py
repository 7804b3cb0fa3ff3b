"""GGUF files on a GPU: the same numbers as on the CPU, a training step near the CPU's, and no weight ever unpacked for good."""

import gc
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from wan_train.core.settings.job import Job, ModelSpec
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.gguf import QUANTS, QuantizedLinear, dequantize
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.train.helpers import SIZE, Direct, compute_loss, train_in_folder
from wan_train.tests.core.wan.gguf.helpers import make_blocks, plain, same_bits, to_blocks, write_gguf

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
CONFIG = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=3, text_dim=SIZE.text_dim)
BLOCK_LINEAR = re.compile(r"blocks\.\d+\.((?:self|cross)_attn\.[qkvo]|ffn\.\d)\.weight")
QUANTIZED = ("Q8_0", "Q6_K", "Q5_K", "Q4_K")
FACTORS = {"Q8_0": 8e-4, "Q6_K": 3e-5, "Q5_K": 5e-5, "Q4_K": 1e-4}  # of the blocks' scales: weights of about 0.05
MIXED = {  # as the K_M files have them, every block alike
    "self_attn.v": "Q6_K", "cross_attn.v": "Q6_K", "cross_attn.o": "Q5_K", "ffn.0": "Q5_K", "ffn.2": "Q8_0",
}  # fmt: skip
ERRORS = {"fp32": 1e-3, "bf16": 0.2}  # of each norm; on the CPU one of the gradients in bf16 is 0.09 from fp32


def encode(name, values, quant):
    """(type, shape, bytes) of a tensor of the file: block linears quantized, all else in fp32."""
    linear = BLOCK_LINEAR.fullmatch(name)
    if linear is None:
        return plain(values)
    kind = MIXED.get(linear[1], "Q4_K") if quant == "mixed" else quant
    return kind, tuple(values.shape), make_blocks(kind, values.numel() // QUANTS[kind].block_size, name, FACTORS[kind])


@pytest.fixture(scope="module")
def model_files(tiny, tmp_path_factory):
    """One for each type, and one with all four."""
    folder, weights = tmp_path_factory.mktemp("gguf"), tiny.weights(CONFIG)
    return {
        quant: write_gguf(
            folder / f"wan-{quant}.gguf", {name: encode(name, values, quant) for name, values in weights.items()}
        )
        for quant in (*QUANTIZED, "mixed")
    }


@pytest.fixture
def gguf_job(job: Job, model_files):
    """Type of the file, precision, memory options to a job over it."""

    def make(quant, precision, **memory):
        path = model_files[quant]
        spec = ModelSpec(path=str(path), identity=inspect(path).identity, precision=precision, label="wan2.1-t2v-1.3b")
        options = MemoryOptions(**{"plan": "manual", "attention": "default", "compile": "off", **memory})
        return replace(job, model=spec, memory=options)

    return make


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch):
    """TF32 is what cuDNN takes for the patch embedding unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def learn(job: Job, device: torch.device, scratch):
    """Of a model whose LoRA does something: the loss without gradients, the loss with them, and the LoRA's gradients."""
    told = []
    prepared = prepare(job, device, tell=told.append, scratch=scratch)
    with torch.no_grad():
        for number, parameter in enumerate(prepared.parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.copy_(noise / 16)
    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=build_optimizer(prepared.parameters, job.optimizer),
        batches=Direct(job),
    )
    prepared.model.eval()
    with torch.no_grad():
        shown, _ = compute_loss(trainer, trainer.batches.get(0), 0)
    prepared.model.train()
    loss, _ = compute_loss(trainer, trainer.batches.get(0), 0)
    loss.mean().backward()
    prepared.features.close()
    assert not told  # such as that the blocks could not be compiled
    return shown.cpu(), loss.detach().cpu(), [parameter.grad.cpu() for parameter in prepared.parameters]


def worst_error(found, expected):
    """Largest of the norms of the differences over the norms, of the losses and all gradients."""
    pairs = zip([*found[:2], *found[2]], [*expected[:2], *expected[2]], strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", QUANTS)
def test_the_numbers_are_the_cpus_bit_for_bit(quant, dtype):
    blocks = to_blocks(make_blocks(quant, 4000))
    result = dequantize(blocks.to(CUDA), quant, (4000, -1), dtype).cpu()
    assert same_bits(result.float(), dequantize(blocks, quant, (4000, -1), dtype).float())


@pytest.mark.parametrize("quant", [*QUANTIZED, "mixed"])
def test_a_file_is_loaded_straight_onto_the_gpu_and_stays_quantized(model_files, quant):
    info = inspect(model_files[quant])
    expected = load_transformer(info, dtype=torch.bfloat16, device="cpu").state_dict()
    gc.collect()
    before = torch.cuda.memory_allocated(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    model = load_transformer(info, dtype=torch.bfloat16, device=CUDA)
    taken, peak = (count(CUDA) - before for count in (torch.cuda.memory_allocated, torch.cuda.max_memory_allocated))
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert {tensor.device for tensor in state.values()} == {CUDA}
    assert all(torch.equal(tensor.cpu(), expected[name]) for name, tensor in state.items())
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 10 * CONFIG.num_layers
    rounding = 512 * len(state)  # the allocator's
    assert taken <= info.num_bytes + rounding
    assert peak <= taken + max(tensor.nbytes for tensor in state.values()) + rounding


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quant", QUANTIZED)
def test_a_step_is_the_cpus(gguf_job, tmp_path, quant, precision):
    expected = learn(gguf_job(quant, "fp32"), CPU, tmp_path)
    found = learn(gguf_job(quant, precision), CUDA, tmp_path)
    assert worst_error(found, expected) < ERRORS[precision]


@pytest.mark.parametrize(
    "memory",
    [
        {"streamed_blocks": 3},
        {"streamed_blocks": 2, "offload_inputs": True},
        {"streamed_blocks": 3, "stream_from": "mapped"},
        {"streamed_blocks": 3, "split_blocks": True},
    ],
    ids=str,
)
def test_a_streamed_step_is_the_resident_one_bit_for_bit(gguf_job, tmp_path, memory):
    with sdpa_kernel(SDPBackend.MATH):  # sums in one order
        expected = learn(gguf_job("mixed", "bf16"), CUDA, tmp_path)
        found = learn(gguf_job("mixed", "bf16", **memory), CUDA, tmp_path)
    assert worst_error(found, expected) == 0.0


@pytest.mark.parametrize("memory", [{}, {"streamed_blocks": 3, "offload_inputs": True}], ids=["resident", "streamed"])
def test_a_compiled_step_is_the_cpus(gguf_job, tmp_path, memory):
    expected = learn(gguf_job("mixed", "fp32"), CPU, tmp_path)
    found = learn(gguf_job("mixed", "fp32", compile="static", **memory), CUDA, tmp_path)
    assert worst_error(found, expected) < ERRORS["fp32"]


def test_streamed_blocks_lie_in_pinned_memory_in_their_stored_bytes(gguf_job, tmp_path):
    prepared = prepare(gguf_job("mixed", "bf16", streamed_blocks=3), CUDA, scratch=tmp_path)
    streamer = prepared.features.streamer
    assert streamer is not None
    quantized = sum(layer.weight.nbytes for layer in prepared.model.modules() if isinstance(layer, QuantizedLinear))
    held = sum(master.layout.num_bytes for master in streamer.masters.values())
    assert quantized < held < 1.2 * quantized  # norms, modulations and biases besides
    assert [master.kind for master in streamer.masters.values()] == ["pinned"] * 3
    prepared.features.close()


def test_a_run_with_previews_in_fp32_is_the_cpus(gguf_job, tmp_path):
    """Loading, three updates, checkpoints, and two previews."""
    results = {}
    for device, memory in ((CPU, {}), (CUDA, {"streamed_blocks": 2})):
        job = gguf_job("mixed", "fp32", **memory)
        job = replace(job, loop=replace(job.loop, steps=3), previews=PreviewOptions(every=2, steps=4, cfg=2.0))
        losses, _, events = train_in_folder(tmp_path, job, device.type, device)
        assert [event["step"] for event in events if event["event"] == "preview"] == [2, 3]
        results[device.type] = losses
    assert results["cuda"] == pytest.approx(results["cpu"], rel=2e-3)
