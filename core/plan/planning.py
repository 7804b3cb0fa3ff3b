"""From a job to the planner of its memory: what is trained, on clips of which sizes, and what the user has decided."""

import re
from collections import Counter
from dataclasses import asdict, fields, replace

import torch

from ..memory.master import ALIGNMENT
from ..memory.precision import AUTO, dtype_name, needs_adapter, resolve
from ..settings.job import Job
from ..settings.memory import Compile, MemoryOptions
from ..settings.precision import Precision
from ..train.batches import num_tokens
from ..wan.checkpoint import CheckpointInfo
from ..wan.gguf import QUANTS, open_header
from ..wan.header import TensorEntry
from .card import Card
from .plan import Bucket, Plan, Task
from .planner import Choice, Pins, Planner
from .run_costs import RunCosts
from .sizes import HIGH_PRECISION, Sizes, Trained

STATIC_SIZES = 8  # sizes of batches for which CUDA graphs of each are worth their memory
GRAPH_SIZE = 8192 * 5120  # numbers in an activation [B, L, D] above which a GPU takes longer for a kernel than the host
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def make_planner(job: Job, info: CheckpointInfo, device: torch.device, card: Card) -> Planner:
    """For the job's model `info` and its sizes of clips. Nothing is pinned, and nothing learnt of earlier runs."""
    dtype = arithmetic(job.model.precision, device)
    job = with_compile_mode(job, device)
    task = Task(
        sizes=info.config,
        trained=Trained(
            rank=job.adapter.rank,
            targets=job.adapter.targets,
            dropout=job.adapter.dropout > 0,
            optimizer=job.optimizer.name,
        ),
        element_size=dtype.itemsize,
        stored_block_bytes=stored_block_bytes(info, dtype),
        rest_bytes=info.rest_bytes,
        accumulation=job.loop.gradient_accumulation,
        graphs=may_use_graphs(job, info.config, device),
    )
    return Planner(
        task=task,
        buckets=buckets_of(job),
        card=within(card, job.memory),
        plan=plan_of(job, dtype),
        steps=job.loop.steps,
        costs=RunCosts(file_bytes=sum(file.stat().st_size for file in info.files)),
    )


def arithmetic(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype that a base of this precision computes in. ConfigError for one that the device or a package lacks."""
    # ara computes as all formats do, and cannot be resolved without its file.
    return resolve(AUTO if needs_adapter(precision) else precision, device).dtype


def compile_mode(job: Job, device: torch.device) -> Compile:
    """What the job's `compile` comes to on `device`, if Triton, or the compiler, works there."""
    mode = job.memory.compile
    if mode != "auto":
        return mode
    return "kernels" if device.type == "cuda" else "off"


def ways_to_compile(job: Job, device: torch.device) -> tuple[Compile, ...]:
    """Those that a plan may choose from; the fastest steps first."""
    chosen = compile_mode(job, device)
    return (chosen, "off") if job.memory.compile == "auto" and chosen != "off" else (chosen,)


def may_use_graphs(job: Job, sizes: Sizes, device: torch.device) -> bool:
    """Whether CUDA graphs of steps are worth their memory, which other sizes can't have: all of the job's are small."""
    if device.type != "cuda" or job.memory.cuda_graphs == "off" or job.adapter.dropout:
        return False
    largest = max(bucket.batch * num_tokens(bucket.shape) for bucket in buckets_of(job))
    return num_batch_sizes(job) <= STATIC_SIZES and largest * sizes.dim <= GRAPH_SIZE


def with_compile_mode(job: Job, device: torch.device) -> Job:
    """The job with its `compile` decided."""
    return replace(job, memory=replace(job.memory, compile=compile_mode(job, device)))


def num_batch_sizes(job: Job) -> int:
    """Different sizes of the job's batches: of some shapes the last batch of an epoch is smaller."""
    samples = Counter[tuple[int, int, int, int]]()
    for sample in job.training_samples:
        samples[sample.shape] += sample.repeats
    smaller = sum(samples[bucket.shape] % bucket.batch > 0 for bucket in buckets_of(job))
    return len(samples) + smaller


def plan_of(job: Job, dtype: torch.dtype) -> Plan:
    """The job's own memory options as a plan; `dtype` is what its precision came to. See `with_compile_mode`."""
    precision = job.model.precision
    memory = job.memory
    return Plan(
        precision=dtype_name(dtype) if precision == AUTO else precision,
        checkpointing=memory.checkpointing,
        keep_attention=memory.keep_attention,
        keep_linears=memory.keep_linears,
        split_blocks=memory.split_blocks,
        ffn_pieces=memory.ffn_pieces,
        offload_inputs=memory.offload_inputs,
        offload_optimizer=memory.offload_optimizer,
        streamed_blocks=memory.streamed_blocks,
        stream_from=memory.stream_from,
        mapped_blocks=memory.mapped_blocks,
        compile="off" if memory.compile == "auto" else memory.compile,
        cuda_graphs=memory.cuda_graphs,
    )


def with_choice(job: Job, choice: Choice) -> Job:
    """The job with the options of the choice."""
    plan = asdict(choice.plan)
    options = {name: plan[name] for name in asdict(job.memory) if name in plan}
    return replace(job, memory=replace(job.memory, **options))


def pins_of(memory: MemoryOptions) -> Pins:
    """What the user has set away from the defaults."""
    default = MemoryOptions()
    set_values = {f.name: getattr(memory, f.name) for f in fields(Pins)}
    return Pins(**{name: value for name, value in set_values.items() if value != getattr(default, name)})


def within(card: Card, memory: MemoryOptions) -> Card:
    """`card` with no more free memory than the budget leaves for tensors."""
    if not memory.budget_gb:
        return card
    return replace(card, free=min(card.free, budget_bytes(memory, card.overhead)))


def budget_bytes(memory: MemoryOptions, overhead: int) -> int:
    """What `budget_gb`, which is what nvidia-smi shows for the process, leaves for tensors."""
    return max(int(memory.budget_gb * 2**30) - overhead, 0)


def buckets_of(job: Job) -> list[Bucket]:
    """The sizes of the job's samples, with the largest batch of each."""
    samples: Counter[tuple[int, int, int, int]] = Counter()
    for sample in job.training_samples:
        samples[sample.shape] += sample.repeats
    found = []
    for shape, count in samples.items():
        batch = min(job.loop.batch_size, count)
        if job.loop.token_budget:
            batch = max(1, min(batch, job.loop.token_budget // num_tokens(shape)))
        found.append(Bucket(shape, batch, share=count / batch))
    return found


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
