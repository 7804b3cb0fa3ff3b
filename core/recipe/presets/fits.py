"""What each preset's training takes on a GPU of its size, as the planner of every run predicts it."""

from dataclasses import dataclass

from ...facts import latent_shape
from ...objective.objective import FlowMatching
from ...objective.regularizers import regularizers_of
from ...plan.card import Card
from ...plan.choice import Choice
from ...plan.plan import Bucket, Plan, Task
from ...plan.planner import Planner
from ...plan.sizes import Trained
from ...settings.dataset_frames import sizes_of
from ...settings.stage import StageSettings, settings_from_names
from ...wan.config import WanConfig
from .preset import Preset

GIB = 2**30
MODELS = {
    "t2v-a14b": WanConfig(),
    "i2v-a14b": WanConfig(variant="i2v", in_dim=36),
    "t2v-1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
}
_DESKTOP = 0.9 * GIB  # what a desktop, ComfyUI and CUDA itself hold of a GPU's memory


def _card(name: str, vram: int, ram: int, rates: tuple[float, float, float, float], *, used: float = _DESKTOP) -> Card:
    """`vram` and `ram` in GB; `rates`: products in TFLOPS, in fp8 (0: none), memory in GB/s, the way to the GPU in GB/s."""
    matmul, matmul_fp8, bandwidth, to_device = rates
    return Card(
        name=name,
        free=int(vram * GIB - used),
        total=vram * GIB,
        free_ram=int(0.75 * ram * GIB),
        pinnable_ram=int(0.5 * ram * GIB),
        matmul=0.8 * matmul * 1e12,  # an H100 reaches 0.8 of its data sheet
        matmul_fp32=0.2 * matmul * 1e12,
        matmul_fp8=0.8 * matmul_fp8 * 1e12,
        attention=0.55 * matmul * 1e12,
        bandwidth=0.9 * bandwidth * 1e9,
        to_device=to_device * 1e9,
        staged=to_device * 0.4e9,
    )


# Rates of NVIDIA's data sheets: dense products of 16 bits added up in 32.
CARDS = {
    12: _card("RTX 4070", 12, 32, (58, 117, 504, 22)),
    24: _card("RTX 4090", 24, 64, (165, 330, 1008, 22)),
    48: _card("RTX A6000", 48, 64, (155, 0, 768, 22)),
    80: _card("H100", 80, 192, (989, 1979, 3350, 50), used=0.6 * GIB),
}
RAM_GB = {12: 32, 24: 64, 48: 64, 80: 192}


@dataclass(frozen=True)
class Fit:
    """A preset on a card."""

    card: Card
    planner: Planner
    choice: Choice | None  # None: it does not fit
    steps: int

    @property
    def hours(self) -> float:
        """Of the whole training, of both experts where there are two, one after the other."""
        assert self.choice is not None
        experts = 1 if self.planner.task.sizes.num_layers == MODELS["t2v-1.3b"].num_layers else 2
        return experts * self.steps * self.choice.seconds / 3600


def fit(chosen: Preset, card_gb: int) -> Fit:
    """What the preset takes on the card of so many GB, with clips of its full size."""
    settings = settings_from_names({**chosen.model, **chosen.train})
    planner = Planner(
        task=_task(chosen, settings),
        buckets=_buckets(chosen, settings),
        card=CARDS[card_gb],
        plan=Plan(precision=settings.precision, compile="kernels"),
        options=settings.memory,
    )
    return Fit(CARDS[card_gb], planner, planner.choose(), settings.loop.steps)


def _task(chosen: Preset, settings: StageSettings) -> Task:
    passes = sum((each.passes for each in regularizers_of(settings.regularizers)), FlowMatching(settings.loss).passes)
    trained = Trained(
        rank=settings.adapter.rank,
        targets=settings.adapter.targets,
        dropout=settings.adapter.dropout > 0,
        optimizer=settings.optimizer.name,
        average=settings.ema.use,
        options=settings.adapter,
    )
    return Task(sizes=MODELS[chosen.family], trained=trained, passes=passes)


def _buckets(chosen: Preset, settings: StageSettings) -> list[Bucket]:
    """Every size of the preset's dataset, each as often."""
    options = chosen.dataset_options()
    channels = MODELS[chosen.family].out_dim
    frames = 1 if chosen.kind == "images" else options.num_frames
    shapes = [latent_shape(channels, frames, height, width) for width, height in sizes_of(options)]
    return [Bucket(shape, settings.loop.batch_size) for shape in shapes]
