"""The layer that stays quantized, alone and in a whole model."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.errors import ModelFileError
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.compile import with_compile
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.gguf import QUANTS, QuantizedLinear, dequantize, keep_quantized, read_gguf_header, read_stored
from wan_train.core.wan.identify import identify
from wan_train.core.wan.loading import load_transformer
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.wan.gguf.helpers import make_blocks, plain, to_blocks, write_gguf


@pytest.fixture
def pair():
    """A quantized layer, and a plain one with the numbers it means."""
    raw = make_blocks("Q4_K", 96 * 2, factor=0.01)
    plain_layer = nn.Linear(512, 96)
    with torch.no_grad():
        plain_layer.weight.copy_(dequantize(to_blocks(raw), "Q4_K", (96, 512), torch.float32))
    layer = QuantizedLinear(512, 96, "Q4_K", bias=True, device=torch.device("cpu"))
    layer.load_state_dict({"weight": to_blocks(raw).view(-1, 144), "bias": plain_layer.bias.detach().clone()})
    return layer, plain_layer.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_computes_what_the_plain_layer_computes(pair, dtype):
    layer, plain_layer = pair[0].to(dtype), pair[1].to(dtype)
    assert layer.weight.dtype == torch.uint8
    x = torch.randn(2, 5, 512, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads, outputs = [], []
    for module in (layer, plain_layer):
        given = x.clone().requires_grad_()
        outputs.append(module(given))
        outputs[-1].float().square().sum().backward()
        grads.append(given.grad)
    assert torch.equal(*outputs)
    assert torch.equal(*grads)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_nothing_but_the_blocks_is_kept_for_the_backward(pair):
    def kept(module):
        tensors = []

        def pack(tensor):
            tensors.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(torch.ones(1, 512, requires_grad=True))
        return [(tensor.dtype, tensor.numel()) for tensor in tensors]

    layer, plain_layer = pair
    assert kept(layer) == [(torch.uint8, 96 * 2 * 144)]
    assert (torch.float32, 96 * 512) in kept(plain_layer)


# A whole model

CONFIG = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=256)
BLOCK_LINEAR = re.compile(r"blocks\.\d+\.(?:self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02])\.weight")
TYPES = {  # of the block linears; all others in turn
    "self_attn.q": "Q4_K", "self_attn.k": "Q5_K", "self_attn.v": "Q6_K", "self_attn.o": "Q3_K",
    "cross_attn.q": "Q2_K", "cross_attn.k": "Q5_1", "cross_attn.v": "Q5_0", "cross_attn.o": "Q4_1",
    "ffn.0": "Q8_0", "ffn.2": "Q4_0",
}  # fmt: skip
LEVELS = {"Q8_0": 127, "Q4_0": 7}


def quantize_absmax(values, name):
    """Blocks of 32 whose largest number has the largest level; Q8_0 and Q4_0."""
    blocks = values.reshape(-1, 32)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / LEVELS[name]).half()
    levels = (blocks / scale.float()).round().clamp(-LEVELS[name], LEVELS[name]).to(torch.int8)
    if name == "Q4_0":
        levels = (levels + 8).view(torch.uint8)
        levels = levels[:, :16] | levels[:, 16:] << 4
    return torch.cat([scale.view(torch.uint8), levels.view(torch.uint8)], dim=1).numpy().tobytes()


def encode(name, values):
    """(type, shape, bytes) as in a file of mixed types: norms, biases and modulations in fp32, the rest quantized."""
    layer = name.removesuffix(".weight")
    kind = next((TYPES[end] for end in TYPES if layer.endswith(end)), "Q8_0")
    if values.ndim == 5:
        return plain(values, "F16")
    if values.ndim != 2:
        return plain(values.squeeze(0) if name == "blocks.0.modulation" else values)
    if name == "head.head.weight":
        return plain(values, "BF16")
    if kind in LEVELS:
        return kind, tuple(values.shape), quantize_absmax(values, kind)
    factor = 2e-3 if QUANTS[kind].block_size == 32 else 1e-4
    return kind, tuple(values.shape), make_blocks(kind, values.numel() // QUANTS[kind].block_size, name, factor)


def meant(kind, shape, raw):
    """The fp32 numbers that a tensor of the file means."""
    if kind in QUANTS:
        return dequantize(to_blocks(raw), kind, shape, torch.float32)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return torch.frombuffer(bytearray(raw), dtype=dtype).float().view(shape)


@pytest.fixture(scope="module")
def encoded(tiny):
    return {name: encode(name, values) for name, values in tiny.weights(CONFIG).items()}


@pytest.fixture(scope="module")
def model_file(encoded, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "Wan2.2-T2V-HighNoise-Q4_K_M.gguf", encoded)


@pytest.fixture(scope="module")
def reference(tiny, encoded):
    """The plain model whose weights are the dequantized ones."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in WanTransformer(CONFIG).state_dict().items()}
    return tiny.model(CONFIG, {name: meant(*value).view(shapes[name]) for name, value in encoded.items()})


def load_quantized(path):
    """The block linears as they are stored, all else in fp32."""
    header = read_gguf_header(path)
    with torch.device("meta"):
        model = WanTransformer(CONFIG)
    state = {}
    with path.open("rb") as stream:
        for name, entry in header.entries.items():
            stored = read_stored(stream, entry, path)
            if BLOCK_LINEAR.fullmatch(name):
                keep_quantized(model, name.removesuffix(".weight"), entry.dtype)
            elif entry.dtype in QUANTS:
                stored = dequantize(stored, entry.dtype, entry.shape, torch.float32)
            state[name] = stored if stored.dtype == torch.uint8 else stored.float()
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def test_the_file_is_recognised_by_its_header(model_file):
    header = read_gguf_header(model_file)
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    assert identify(shapes).variant == "t2v"
    with torch.device("meta"):
        assert shapes == {name: tuple(value.shape) for name, value in WanTransformer(CONFIG).state_dict().items()}
    assert {entry.dtype for entry in header.entries.values()} == {*QUANTS, "F32", "F16", "BF16"}


def test_quantized_numbers_are_near_the_weights(encoded, tiny):
    weights = tiny.weights(CONFIG)
    for name, bound in [("blocks.0.ffn.0.weight", 0.51 / 127), ("blocks.1.ffn.2.weight", 0.51 / 7)]:
        rows = weights[name].view(-1, 32)
        errors = (meant(*encoded[name]).view(-1, 32) - rows).abs().amax(dim=1) / rows.abs().amax(dim=1)
        assert 0 < errors.max() < bound * 1.01


def test_forward_and_gradients_equal_those_of_the_dequantized_model(model_file, reference, tiny):
    model = load_quantized(model_file)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 20
    inputs = tiny.inputs(CONFIG, frames=2, height=4, width=6, tokens=32)
    results = tiny.forward_and_gradients(model, inputs)
    expected = tiny.forward_and_gradients(reference, inputs)
    assert all(torch.isfinite(value).all() and value.abs().max() > 0 for value in expected)
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_checkpoint_reads_it_like_any_other_file(tmp_path, encoded, reference, tiny, prefix):
    path = write_gguf(tmp_path / "wan.gguf", {prefix + name: value for name, value in encoded.items()})
    info = inspect(path)
    assert (info.config, info.weights) == (CONFIG, "q8_0")
    assert info.num_params == sum(value.numel() for value in reference.state_dict().values())
    assert info.num_bytes == sum(len(raw) for _, _, raw in encoded.values())
    model = load_transformer(info, dtype=torch.float32, device="cpu")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inputs = tiny.inputs(CONFIG, frames=2, height=4, width=6, tokens=32)
    results = tiny.forward_and_gradients(model, inputs)
    assert all(map(torch.equal, results, tiny.forward_and_gradients(reference, inputs)))
    half_precision = load_transformer(info, dtype=torch.bfloat16, device="cpu")
    assert half_precision.dtype == torch.bfloat16
    assert tiny.errors(tiny.forward_and_gradients(half_precision, inputs)[0], results[0])[1] < 0.02


def test_checkpoint_refuses_what_is_not_gguf_in_spite_of_its_name(tmp_path):
    path = tmp_path / "wan.gguf"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFileError, match=r"wan.gguf' is no GGUF file in spite of its name, so the download went"):
        inspect(path)


def test_a_lora_trains_on_it_as_on_the_dequantized_model(model_file, reference, tiny):
    gradients = []
    inputs = tiny.inputs(CONFIG, frames=1, height=4, width=4, tokens=16)
    for model in (load_quantized(model_file), tiny.model(CONFIG, reference.state_dict())):
        parameters = add_adapter(model, AdapterOptions(rank=2), seed=3)
        with torch.no_grad():
            for name, parameter in parameters:
                if "lora_B" in name:
                    parameter.fill_(0.01)
        functional.mse_loss(model(inputs.latents, inputs.timesteps, inputs.context), inputs.probe).backward()
        gradients.append({name: parameter.grad for name, parameter in parameters})
    assert len(gradients[0]) == 40
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, gradients[1][name])


def test_compiled_and_streamed_it_keeps_no_weight_for_the_backward(model_file, tiny):
    """Compiled code keeps a buffer that is a view as an alias, in which the streamer sees a weight of a slot."""
    inputs = tiny.inputs(CONFIG, frames=1, height=4, width=4, tokens=16)
    gradients = []
    for streamed in (False, True):
        model = load_transformer(inspect(model_file), dtype=torch.float32, device="cpu")
        parameters = add_adapter(model, AdapterOptions(rank=2), seed=3)
        model.run_block = with_compile(with_checkpointing(model.run_block), tell=pytest.fail, backend="aot_eager")
        if streamed:
            blocks = list(model.blocks)
            model.run_block = stream_blocks(blocks, torch.device("cpu"), streamed=range(len(blocks))).wrap(
                model.run_block
            )
        functional.mse_loss(model(inputs.latents, inputs.timesteps, inputs.context), inputs.probe).backward()
        gradients.append([parameter.grad for _, parameter in parameters])
    assert all(map(torch.equal, *gradients))
