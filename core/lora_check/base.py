"""A LoRA on its base: whether it fits, how large its change is beside the weights, and what it does to fixed noise.

C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.apply import attach
from ..adapters.formats import LoraModule
from ..adapters.other_files import OtherModule
from ..adapters.transfer import TransferReport, model_shapes, transfer_report
from ..errors import ConfigError
from ..facts import NUM_TIMESTEPS, official_boundary
from ..memory.precision import native_dtype
from ..wan.checkpoint import CheckpointInfo, hints_expert
from ..wan.config import MASK_CHANNELS, WanConfig
from ..wan.loading import load_transformer
from ..wan.stored import StoredWeights
from ..words import counted
from .file import Adapter, Layer, change_norm
from .findings import EMPTY, Finding, Weight, is_distilled, on_distilled

SIGMAS = tuple(step / 10 for step in range(1, 10))
_FRAMES, _SIDE, _TOKENS = 3, 16, 64
_SEED = 7
_NOTHING, _LITTLE, _MUCH = 1e-4, 5e-3, 1.0  # share of the output's norm
_TINY_CHANGE, _HUGE_CHANGE = 1e-4, 1.0  # share of a weight's norm

Say = Callable[[str], None]


@dataclass(frozen=True)
class OnBase:
    """What was measured."""

    placed: int  # layers with a place in the model
    by_block: dict[str, float]  # |change| / |weight|, over the layers of a block
    effect: dict[float, float]  # by sigma: |velocity with - without| / |velocity without|
    findings: list[Finding]
    used: tuple[float, ...] = SIGMAS  # those at which the sampler runs this expert, or all

    @property
    def most(self) -> float:
        """The largest effect where it counts."""
        return max(self.effect[sigma] for sigma in self.used)


def check_base(
    file: Adapter, layers: list[Layer], info: CheckpointInfo, device: torch.device, progress: Say = lambda _: None
) -> OnBase:
    """Measure. Findings where the LoRA does not belong to the model; the weights are read one by one, then the model whole."""
    try:
        report = transfer_report(file, model_shapes(info.config))
    except ConfigError as error:
        sentence, _, remedy = str(error).rpartition("; ")
        return OnBase(0, {}, {}, [Finding(Weight.NO_EFFECT, f"{sentence}.", f"{remedy[:1].upper()}{remedy[1:]}")])
    fast = [on_distilled(info.path.name)] if is_distilled(info.path.stem) else []
    found = [*_wrong_expert(file, info), *fast, *(Finding(Weight.HINT, note, "") for note in report.notes)]
    progress("reading the model's weights")
    by_block = _by_block(file, layers, report, info, device)
    progress("running the model on fixed noise")
    effect = effect_on_noise(file, report, info, device)
    used = _used_sigmas(file, info)
    found += [*_judge_blocks(by_block), *_judge_effect([effect[sigma] for sigma in used])]
    return OnBase(len(report.placed), by_block, effect, found, used)


def _used_sigmas(file: Adapter, info: CheckpointInfo) -> tuple[float, ...]:
    expert, boundary = hints_expert(info.path) or file.expert, official_boundary(info.config.variant)
    if expert is None:
        return SIGMAS
    return tuple(sigma for sigma in SIGMAS if (sigma >= boundary) == (expert == "high"))


def effect_on_noise(
    file: Adapter, report: TransferReport, info: CheckpointInfo, device: torch.device
) -> dict[float, float]:
    """By sigma: how far the LoRA moves the velocity, as a share of its norm. One block of the model is on the device at a time.

    The input is sigma times one noise, the text is noise too: a measure to compare LoRAs with, not of what is seen.
    """
    without = velocities(info, {}, device)
    with_it = velocities(info, {path: file.modules[path] for path in report.placed}, device)
    shares = (with_it - without).flatten(1).norm(dim=1) / without.flatten(1).norm(dim=1)
    return dict(zip(SIGMAS, shares.tolist(), strict=True))


def velocities(info: CheckpointInfo, modules: Mapping[str, LoraModule | OtherModule], device: torch.device) -> Tensor:
    """What the model with a LoRA predicts at each of `SIGMAS`, [9, C, F, H, W] float64 on the CPU."""
    dtype, nowhere = native_dtype(device), torch.device("meta")
    model = load_transformer(info, dtype=dtype, device=lambda index: device if index is None else nowhere)
    numbers = {id(block): number for number, block in enumerate(model.blocks)}
    attach(model, {path: module for path, module in modules.items() if not path.startswith("blocks.")})

    def run_block(block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        number = numbers[id(block)]
        start = f"blocks.{number}."
        read = load_transformer(info, dtype=dtype, device=lambda index: device if index == number else nowhere)
        attach(read, {path: module for path, module in modules.items() if path.startswith(start)})
        return read.blocks[number](x, *others)

    model.run_block = run_block
    latents, context, others = fixed_inputs(info.config, device)
    sigmas = torch.tensor(SIGMAS, device=device)
    many = {name: tensor.expand(len(SIGMAS), *tensor.shape[1:]) for name, tensor in others.items()}
    with torch.no_grad():
        noisy = sigmas.view(-1, 1, 1, 1, 1) * latents
        result = model(noisy, sigmas * NUM_TIMESTEPS, context.expand(len(SIGMAS), -1, -1), **many)
    return result.double().cpu()


def fixed_inputs(config: WanConfig, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Noise [1, C, F, H, W], a text of noise [1, S, D], and what an image-to-video model needs besides: no frame is given."""
    generator = torch.Generator().manual_seed(_SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    latents = draw(1, config.out_dim, _FRAMES, _SIDE, _SIDE)
    context = torch.zeros(1, config.text_len, config.text_dim)
    context[:, :_TOKENS] = 0.1 * draw(1, min(_TOKENS, config.text_len), config.text_dim)
    others: dict[str, Tensor] = {}
    channels = config.in_dim - config.out_dim
    if channels:
        others["conditioning"] = torch.zeros(1, channels, _FRAMES, _SIDE, _SIDE)
        others["conditioning"][:, MASK_CHANNELS:] = 0.1 * draw(1, channels - MASK_CHANNELS, _FRAMES, _SIDE, _SIDE)
    if config.image_dim is not None:
        others["clip_features"] = draw(1, config.image_positions or 257, config.image_dim)
    return latents.to(device), context.to(device), {name: tensor.to(device) for name, tensor in others.items()}


def _by_block(
    file: Adapter, layers: list[Layer], report: TransferReport, info: CheckpointInfo, device: torch.device
) -> dict[str, float]:
    weights = StoredWeights(info)
    sums: dict[str, tuple[float, float]] = {}
    placed = set(report.placed)
    for layer in layers:
        if layer.path not in placed:
            continue
        weight = weights.read(f"{layer.path}.weight", device).flatten(1)
        module = file.modules[layer.path]
        is_lora = isinstance(module, LoraModule)
        change = change_norm(module) if is_lora else float(module.to(device).delta(weight).norm())
        changes, whole = sums.get(layer.block, (0.0, 0.0))
        sums[layer.block] = (changes + change**2, whole + float(weight.double().square().sum()))
    return {block: (change / whole) ** 0.5 if whole else 0.0 for block, (change, whole) in sums.items()}


def _wrong_expert(file: Adapter, info: CheckpointInfo) -> list[Finding]:
    model = hints_expert(info.path)
    if not file.expert or not model or file.expert == model:
        return []
    return [
        Finding(
            Weight.WRONG,
            f"The LoRA was trained for the {file.expert} noise expert, and {info.path.name} is the {model} noise one.",
            f"Load it on the {file.expert} noise model.",
        )
    ]


def _judge_blocks(by_block: dict[str, float]) -> list[Finding]:
    shares = list(by_block.values())
    if shares and max(shares) < _TINY_CHANGE:
        sentence = f"The LoRA changes no block by more than {100 * max(shares):.2g} % of its weights."
        return [Finding(Weight.NO_EFFECT, sentence, "Train longer, or with a higher learning rate or alpha.", EMPTY)]
    huge = [block for block, share in by_block.items() if share > _HUGE_CHANGE]
    if huge:
        sentence = f"The change is larger than the weights themselves in {counted(len(huge), 'block')}, the first is {huge[0]}."
        return [
            Finding(Weight.WRONG, sentence, "Lower the strength, or take an earlier checkpoint: it is overtrained.")
        ]
    return []


def _judge_effect(effect: list[float]) -> list[Finding]:
    most = max(effect)
    if any(share != share for share in effect):
        return [Finding(Weight.WRONG, "With the LoRA the model gives no numbers (NaN).", "Take an earlier checkpoint.")]
    if most < _NOTHING:
        sentence = f"On fixed noise the LoRA moves the model's output by {100 * most:.2g} % at most, which nobody sees."
        return [Finding(Weight.NO_EFFECT, sentence, "Train longer, or with a higher learning rate or alpha.", EMPTY)]
    if most < _LITTLE:
        sentence = f"On fixed noise the LoRA moves the model's output by {100 * most:.2g} % at most, which is little."
        return [Finding(Weight.HINT, sentence, "Try a strength of 2, then train longer.")]
    if most > _MUCH:
        sentence = (
            f"On fixed noise the LoRA moves the model's output by {100 * most:.3g} %: more than the output itself."
        )
        return [Finding(Weight.WRONG, sentence, "Lower the strength, or take an earlier checkpoint.")]
    return []
