"""A small Wan model with an adapter that does something, and what a training step makes of it."""

import copy
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.streaming import BlockStreamer
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.gguf import QUANTS, QuantizedLinear, keep_quantized
from wan_train.core.wan.model import WanTransformer, call_block
from wan_train.tests.core.wan.conftest import build_model, make_weights

CPU = torch.device("cpu")
CONFIG = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=6, text_dim=16)
SHORT_CONFIG = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=3, text_dim=16)
CLIP_CONFIG = WanConfig(
    variant="i2v", in_dim=36, image_dim=24, dim=32, ffn_dim=64, num_heads=2, num_layers=4, text_dim=16
)
SHAPES = ((1, 16, 2, 4, 6), (2, 16, 1, 4, 4), (1, 16, 3, 6, 4))


def make_model(config: WanConfig = CONFIG, dtype: torch.dtype = torch.float32, quant: str | None = None, **adapter):
    """A frozen model with a LoRA that is not zero, in training mode; `quant`: block linears as GGUF has them."""
    model = build_model(config, make_weights(config))
    model.blocks.to(dtype)
    if quant is not None:
        quantize_blocks(model, quant)
    parameters = [
        parameter
        for _, parameter in add_adapter(
            model, AdapterOptions(**({"rank": 2, "alpha": 2.0, "targets": ("self_attn", "ffn")} | adapter)), seed=0
        )
    ]
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return model.train()


def quantize_blocks(model: WanTransformer, quant: str) -> None:
    """Block linears whose input is a whole number of the quant's blocks get random levels, at a plain scale."""
    generator = torch.Generator().manual_seed(2)
    linears = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "blocks." in name]
    for name in linears:
        keep_quantized(model, name, quant)
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert layer.bias is not None
        levels = torch.randint(0, 256, layer.weight.shape, generator=generator, dtype=torch.uint8)
        levels[:, :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)  # the scale of Q8_0
        layer.weight.copy_(levels)
        layer.bias.data.zero_()
    assert quant == "Q8_0"
    assert QUANTS[quant].num_bytes == 34


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def step(model: WanTransformer, shape: Sequence[int], seed: int = 0, *, all_learn: bool = True) -> list[Tensor]:
    """Adapter gradients of one training step at latents of `shape`. `all_learn`: none of them may be 0."""
    forward_loss(model, shape, seed).backward()
    return take_gradients(model, all_learn=all_learn)


def forward_loss(model: WanTransformer, shape: Sequence[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    config, device = model.config, model.head.head.weight.device
    latents = torch.randn(shape, generator=generator).to(device)
    timesteps = 1000 * torch.rand(shape[0], generator=generator).to(device)
    context = torch.randn(shape[0], 7, config.text_dim, generator=generator).to(device)
    images = {}
    if config.conditioning_dim:
        conditioning = torch.randn(shape[0], config.conditioning_dim, *shape[2:], generator=generator)
        images["conditioning"] = conditioning.to(device)
    if config.image_dim is not None:
        images["clip_features"] = torch.randn(shape[0], 257, config.image_dim, generator=generator).to(device)
    return model(latents, timesteps, context, **images).float().square().mean()


def take_gradients(model: nn.Module, *, all_learn: bool = True) -> list[Tensor]:
    gradients = []
    for parameter in trainable(model):
        assert parameter.grad is not None
        gradients.append(parameter.grad)
        parameter.grad = None
    assert not all_learn or all(gradient.abs().sum() > 0 for gradient in gradients)
    return gradients


def plain_steps(model: WanTransformer, shapes: Sequence[Sequence[int]] = SHAPES) -> list[list[Tensor]]:
    """What steps at `shapes` give with checkpointing alone; `model` is not touched."""
    model = copy.deepcopy(model)
    model.run_block = with_checkpointing(call_block)
    return [step(model, shape, seed) for seed, shape in enumerate(shapes)]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class PoisoningStreamer(BlockStreamer):
    """Leaves no weights but those of the entered block: slots and absent blocks are filled with NaN.

    On the CPU a block could else compute with its master, which on a GPU it cannot.
    """

    def enter(self, index: int, **options: bool) -> None:
        super().enter(index, **options)
        for slot in self.slots:
            if slot.block != index:
                if slot.arrival is not None:
                    slot.arrival.hold_compute()
                self._evict(slot)
                slot.bytes.fill_(0xFF)  # NaN in every floating-point format
        for absent in set(self.streamed) - {index}:
            layout, device = self.masters[absent].layout, self.slots[0].bytes.device
            nothing = torch.full((layout.num_bytes,), 0xFF, dtype=torch.uint8, device=device)
            self.masters[absent].bind(layout.views(nothing))


def recording(run_block: Callable[..., Tensor], blocks: nn.ModuleList, calls: list[int]) -> Callable[..., Tensor]:
    """`run_block`, with the index of every block noted in `calls`."""
    indices = {block: index for index, block in enumerate(blocks)}

    def run(block: nn.Module, *inputs: Tensor) -> Tensor:
        calls.append(indices[block])
        return run_block(block, *inputs)

    return run


def break_off_anywhere(model: WanTransformer, streamer: BlockStreamer, expected: object) -> None:
    """A step that fails at each of several calls of a block; after a reset the next gives what one gives that never failed."""
    whole = model.run_block
    for count in (1, 3, 6, 7, 9, 12):
        calls = itertools.count(1)

        def failing(block, *inputs, calls=calls, count=count):
            if next(calls) == count:
                raise MemoryError
            return call_block(block, *inputs)

        model.run_block = streamer.wrap(with_checkpointing(failing))
        with pytest.raises(MemoryError):
            step(model, SHAPES[1])
        for parameter in trainable(model):
            parameter.grad = None
        streamer.reset()
        model.run_block = whole
        assert_same(step(model, SHAPES[0]), expected)
