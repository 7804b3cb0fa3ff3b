"""From a job to a model ready to train: base, adapter, memory features."""

import gc
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapters.merged_base import MergedBase, merged_base
from ..adapters.peft_hooks import begin_importing_adapters, finish_importing_adapters
from ..adapters.rank_gate import set_noise_window
from ..adapters.setup import add_adapter, use_light_forward
from ..adapters.start_from import check_file
from ..adapters.transfer import model_shapes
from ..encoders.dino import feature_width
from ..errors import ConfigError
from ..flow.random import stream_seed
from ..memory.bases import TwoBases
from ..memory.int4 import LowRank
from ..memory.master import BlockMaster
from ..memory.masters import MasterMaker
from ..memory.precision import (
    FormatOptions,
    Resolved,
    known_precision,
    resolve,
)
from ..memory.recompute import Kept
from ..objective.crepa import Projection
from ..parallel.world import ALONE, World
from ..plan.decision import Decision, decide, joined_buckets
from ..plan.host import available_ram, pinnable_ram
from ..plan.plan import Plan
from ..plan.planning import plan_of
from ..plan.sizes import Sizes
from ..plan.switching import parking_kind
from ..routes import read_routes, routes_among
from ..settings.job import Job
from ..wan.checkpoint import CheckpointInfo
from ..wan.loading import load_transformer
from ..wan.model import WanTransformer
from ..wan.recovery import file_identity, read_recovery_adapter
from ..wan.walk import Look
from .checks import check_job, check_model_file
from .crepa import Crepa
from .features import Features, Tell, apply_features, make_masters, memory_for_inputs
from .trial import Trial
from .warm_up import WarmUp

if TYPE_CHECKING:
    from ..kernels.warm import Needs, Warming

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A model ready to train."""

    model: WanTransformer
    parameters: list[nn.Parameter]
    device: torch.device
    dtype: torch.dtype
    features: Features
    crepa: Crepa | None = None
    beside: tuple[nn.Parameter, ...] = ()  # of the parameters: those that are no adapter's, and in no LoRA file
    bases: TwoBases | None = None  # the frozen weights of both experts, where they share the adapter

    @property
    def of_adapter(self) -> list[nn.Parameter]:
        """The adapter's parameters."""
        return self.parameters[: len(self.parameters) - len(self.beside)]


def prepare(
    job: Job,
    device: torch.device,
    *,
    decision: Decision | None = None,
    plan: Plan | None = None,
    tell: Tell = log.warning,
    scratch: Path | None = None,
    kept: Mapping[int, Kept] | None = None,
    world: World = ALONE,
) -> Prepared:
    """Load the base frozen onto `device`, add the adapter, and put `plan` on it; by default as the job's options have it.

    `decision` is made here where a run has not made it before. `tell` is given a sentence for everything that turned out
    otherwise than asked. `scratch` is a folder for what may be used again and may be deleted: compiled code, and mapped
    blocks, which need it. `kept` and `world`: see `apply_features`. Two experts that
    share the adapter are to be held next: see `hold_bases`.
    """
    if decision is None:
        decision = decide(job, check_job(job), device, scratch, context=world.context)
        for sentence in decision.warnings:
            tell(sentence)
    plan = plan or plan_of(job, decision, world)
    info = decision.info
    held = resolve(
        job.model.precision, device, weights=info.weights, options=FormatOptions(adapter=_recovery_adapter(job))
    )
    for sentence in held.warnings:
        tell(sentence)
    warming = _start_kernels(job, decision, plan)
    begin_importing_adapters()  # while the disk is read, which leaves Python to others
    warm_up = None
    if device.type == "cuda":
        warm_up = WarmUp(decision, info.config, _trial(job, decision, plan, held), warming)
    inputs = None
    if world.context == 1 and not job.tread.routes:  # else blocks see fewer tokens
        inputs = memory_for_inputs(plan, decision, joined_buckets(job, decision.joined), held.dtype)
    with timed("Reading the model"):
        merged = _merged(job, info, tell)
        maker = make_masters(plan, info.config.num_layers, device, scratch=scratch, tell=tell, world=world)
        skips = _makes_unread(job.model.precision, held, info.config.dim)
        model, masters = _load(info, held, device, maker, merged, skips=skips)
    bases = _two_bases(job, held, model, device)
    with timed("Waiting for peft"):
        finish_importing_adapters()
    with timed("Adding the adapter"):
        parameters = [parameter for _, parameter in add_adapter(model, job.adapter, seed=job.loop.seed)]
        model.routes = routes_among(read_routes(job.tread.routes), info.config.num_layers)
        set_noise_window(model, job.timesteps.sigma_min, job.timesteps.sigma_max)
        use_light_forward(model)
    crepa, beside = _crepa(job, model, device)
    parameters += beside
    with timed("Putting the plan on the model"):
        features = apply_features(
            model, plan, decision, tell=tell, scratch=scratch, kept=kept, masters=masters or maker, world=world
        )
        if features.offload is not None and inputs is not None:
            features.offload.use(inputs)
    with timed("Waiting for the kernels and libraries"):
        for under_way in (warming, warm_up):
            if under_way is not None:
                under_way.wait()
    return Prepared(model, parameters, device, held.dtype, features, crepa, tuple(beside), bases)


def hold_bases(
    bases: TwoBases, features: Features, device: torch.device, *, keeps_weights: bool, scratch: Path | None
) -> None:
    """Have both experts' weights as the features that are on the model want them. `keeps_weights`: on the device."""
    swapped = {} if features.streamer is None else features.streamer.masters
    folder = None if scratch is None else scratch / "blocks"
    kind = None if keeps_weights else parking_kind(2 * bases.bytes_beside(swapped), available_ram(), pinnable_ram())
    if kind == "mapped" and folder is None:
        kind = "pageable"
    bases.hold(swapped, kind, folder)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _two_bases(job: Job, held: Resolved, model: WanTransformer, device: torch.device) -> TwoBases | None:
    """With the other expert, which is read into main memory block by block; None where a run has one model."""
    if job.stage != "both":
        return None
    assert job.other_expert is not None, "a job of both experts names the second"
    info = check_model_file(job.other_expert)
    with timed("Reading the other expert"):
        maker = MasterMaker(dict.fromkeys(range(info.config.num_layers), "pageable"), device)
        other, _ = _load(info, held, device, maker, None, skips=False)
    return TwoBases(model, other, device)


def _crepa(job: Job, model: WanTransformer, device: torch.device) -> tuple[Crepa | None, list[nn.Parameter]]:
    """CREPA's term with the look at the model that it needs, and what it trains."""
    if not job.crepa.weight:
        return None, []
    width = feature_width(Path(job.crepa.encoder))
    projection = Projection(model.config.dim, width, seed=stream_seed(job.loop.seed, "crepa")).to(device)
    model.look = Look(job.crepa.block)
    return Crepa(projection, model.look, job.crepa), list(projection.parameters())


def _trial(job: Job, decision: Decision, plan: Plan, held: Resolved) -> Trial:
    """What is tried before the first step, while the model is read."""
    return Trial(
        decision=decision,
        plan=plan,
        held=held,
        adapter=job.adapter,
        buckets=joined_buckets(job, decision.joined),
        given_frames=int(job.data.gives_first_frame),
    )


def _start_kernels(job: Job, decision: Decision, plan: Plan) -> "Warming | None":
    """Begin to make the kernels ready that the blocks will run by, if they will; it goes on beside the reading."""
    if decision.device.type != "cuda" or plan.compile != "kernels":
        return None
    from ..kernels.warm import Warming

    return Warming(needs_of(job, decision.info.config, decision.device, decision.dtype))


def needs_of(job: Job, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> "Needs":
    """The kernels that the blocks of the job's model run by; `dtype` is that of their arithmetic."""
    from ..kernels.warm import Needs

    kind = known_precision(job.model.precision)
    return Needs(
        device=device,
        dtype=dtype,
        dim=sizes.dim,
        ffn_dim=sizes.ffn_dim,
        head_dim=sizes.dim // sizes.num_heads,
        quantizes=kind is not None and kind.multiplies_in_fp8,
        weights=kind.kernel_weight if kind else None,
    )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long it took."""
    start = time.perf_counter()
    yield
    log.info("%s took %.1f s.", what, time.perf_counter() - start)


def _load(
    info: CheckpointInfo,
    held: Resolved,
    device: torch.device,
    maker: MasterMaker,
    merged: MergedBase | None,
    *,
    skips: bool,
) -> tuple[WanTransformer, dict[int, BlockMaster]]:
    """The base, and the masters of blocks that are elsewhere, which are made one by one: the rest never is in main memory.

    `skips`: blocks that another rank reads for this one are not read here.
    """

    def device_of(index: int | None) -> torch.device:
        if skips and not maker.needs_content(index):
            return torch.device("meta")
        # A GPU quantizes faster and knows its kernels; from there the master takes the block, which is small by then.
        return torch.device("cpu") if index in maker.kinds and held.linear is None else device

    with maker.together():
        model = load_transformer(
            info, dtype=held.dtype, device=device_of, linear=held.linear, loaded=maker.take, merged=merged
        )
        return model, maker.finish()


def _makes_unread(precision: str, held: Resolved, dim: int) -> bool:
    """Whether the precision makes a layer from a weight on the meta device, found by trying."""
    if held.linear is None:
        return True
    kind = known_precision(precision)
    if kind is not None and kind.packages:
        return False  # bitsandbytes keeps its tables on the device that it was last asked for
    try:
        weight = torch.empty(dim, dim, dtype=held.dtype, device="meta")
        held.linear("blocks.0.self_attn.q", weight, None, dtype=held.dtype, bias=None)
    except Exception:  # one that looks at the numbers: whatever its package raises then
        return False
    return True


def _merged(job: Job, info: CheckpointInfo, tell: Tell) -> MergedBase | None:
    options = job.adapter
    if not options.merge_into_base:
        return None
    check_file(options.merge_into_base, job.merge_identity, "merge_into_base")
    merged = merged_base(options.merge_into_base, options.merge_strength, model_shapes(info.config))
    for sentence in merged.notes:
        tell(sentence)
    return merged


def _recovery_adapter(job: Job) -> Mapping[str, LowRank]:
    spec = job.model
    if not spec.recovery_adapter:
        return {}
    path = Path(spec.recovery_adapter)
    if file_identity(path) != spec.recovery_identity:
        raise ConfigError(
            f"{path} is not the recovery adapter that this run was started with (its content changed): restore it, or "
            "start a new run."
        )
    return read_recovery_adapter(path, job.stage if job.stage in ("high", "low") else None)
