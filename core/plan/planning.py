"""From a job to the planner of its memory: what is trained, on clips of which sizes, and what the user has decided."""

import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..encoders.dino import feature_width
from ..memory.master import ALIGNMENT
from ..memory.precision import AUTO, dtype_name
from ..objective.objective import objective_of
from ..optimizers import OPTIMIZERS
from ..parallel.world import ALONE, World
from ..routes import kept_share, read_routes
from ..settings.job import Job
from ..settings.memory import MemoryOptions
from ..settings.plain import PLAIN, chosen
from ..wan.checkpoint import CheckpointInfo
from ..wan.gguf import QUANTS, open_header
from ..wan.header import TensorEntry
from .beside import work_of
from .card import Card
from .decision import Decision, joined_buckets, memory_of
from .plan import ONE_GPU, Gpus, Plan, Task
from .planner import Planner
from .run_costs import RunCosts
from .sizes import HIGH_PRECISION, Sizes, Trained

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def make_planner(job: Job, decision: Decision, card: Card, gpus: Gpus = ONE_GPU) -> Planner:
    """For the job's model and its sizes of clips, with its options, over `gpus`. Nothing is learnt of earlier runs."""
    info = decision.info
    task = Task(
        sizes=info.config,
        trained=trained_by(job),
        element_size=decision.dtype.itemsize,
        stored_block_bytes=stored_block_bytes(info, decision.dtype),
        rest_bytes=info.rest_bytes,
        accumulation=job.loop.gradient_accumulation // decision.joined,
        passes=objective_of(job).passes,
        graphs=decision.graphs,
        gpus=gpus,
        seen=seen_of(job, info.config),
        features=feature_width(Path(job.crepa.encoder)) if job.crepa.weight else 0,
    )
    return Planner(
        task=task,
        buckets=joined_buckets(job, decision.joined),
        card=within(card, job.memory),
        plan=plan_of(job, decision),
        options=memory_of(job),
        steps=job.loop.steps,
        costs=RunCosts(file_bytes=sum(file.stat().st_size for file in info.files)),
        work=work_of(job, sharing=gpus.side_by_side),
        compiles=decision.modes,
    )


def seen_of(job: Job, sizes: Sizes) -> tuple[tuple[int, float], ...]:
    """How many blocks see which share of the tokens; () where all see all."""
    routes = read_routes(job.tread.routes)
    return tuple(kept_share(routes, sizes.num_layers)) if routes else ()


def trained_by(job: Job) -> Trained:
    """What the job trains. ConfigError for an optimizer that can't be used."""
    options = job.optimizer
    method = OPTIMIZERS.get(options.name)
    return Trained(
        adapter=job.adapter.kind,
        rank=job.adapter.rank,
        targets=job.adapter.targets,
        dropout=job.adapter.dropout > 0,
        optimizer=options.name,
        state_bytes=None if isinstance(method.state_bytes, int) else method.bytes_of(options),
        average=job.ema.use,
        options=job.adapter,
    )


def plan_of(job: Job, decision: Decision, world: World = ALONE) -> Plan:
    """The job's own memory options as a plan: what is left to a planner is plain.

    `world`: the ranks that train together. Whether they share the frozen base is the job's `parallel.base`; auto: they don't.
    """
    precision = job.model.precision
    return Plan(
        shards=len(world.machine) if job.parallel.base == "sharded" else 1,
        precision=dtype_name(decision.dtype) if precision == AUTO else precision,
        compile=decision.modes[0],
        cuda_graphs=memory_of(job).cuda_graphs,
        **{**PLAIN, **chosen(memory_of(job))},
    )


def with_plan(job: Job, plan: Plan) -> Job:
    """The job with the plan's options in the place of those that were left to a planner."""
    options = {
        name: value for name, value in asdict(plan).items() if name not in ("precision", "shards", "keep_transposed")
    }
    return replace(job, memory=replace(job.memory, **options))


def within(card: Card, memory: MemoryOptions) -> Card:
    """`card` with no more free memory than the budget leaves for tensors."""
    if not memory.budget_gb:
        return card
    return replace(card, free=min(card.free, budget_bytes(memory, card.overhead)))


def budget_bytes(memory: MemoryOptions, overhead: int) -> int:
    """What `budget_gb`, which is what nvidia-smi shows for the process, leaves for tensors."""
    return max(int(memory.budget_gb * 2**30) - overhead, 0)


def stored_block_bytes(info: CheckpointInfo, dtype: torch.dtype) -> int | None:
    """Bytes of the largest block, as it is streamed, of a file whose layers stay quantized (GGUF); None for any other.

    `dtype` is that of the arithmetic, which plain linears and all biases of linears have.
    """
    sizes: Counter[str] = Counter()
    is_quantized = False
    for file in info.files:
        for name, entry in open_header(file).entries.items():
            block = _BLOCK.search(name)
            if block is not None:
                is_quantized |= entry.dtype in QUANTS
                sizes[block[1]] += -(-_held_bytes(name, entry, dtype) // ALIGNMENT) * ALIGNMENT
    return max(sizes.values()) if is_quantized else None


def _held_bytes(name: str, entry: TensorEntry, dtype: torch.dtype) -> int:
    if entry.dtype in QUANTS:
        return entry.num_bytes
    is_linear = name.endswith((".weight", ".bias")) and "norm" not in name
    return entry.num_params * (dtype.itemsize if is_linear else HIGH_PRECISION)
