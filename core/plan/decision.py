"""What a run computes with, found out once, before anything is planned or loaded: device, dtype, kernels, attention, graphs.

Kernels, the compiler and the kinds of attention are tried here and nowhere else. The planner plans with what was found, and
the model is made to compute with it, also after memory has run out.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch

from ..adapters.kind import ADAPTER_KINDS
from ..adapters.peft_hooks import finish_importing_adapters
from ..errors import ConfigError
from ..facts import num_tokens
from ..memory.attention import AttentionShape
from ..memory.compile import compiler_problem, use_compile_cache, use_triton_cache
from ..memory.precision import AUTO, needed_by_precision, needs_adapter, resolve
from ..objective.objective import objective_of
from ..objective.passes import Passes
from ..settings.job import Job
from ..settings.memory import BlockMode, MemoryOptions
from ..settings.precision import Precision
from ..wan.checkpoint import CheckpointInfo
from .plan import Bucket
from .probe import choose_kind
from .sizes import Sizes
from .words import label

GRAPHED_SIZES = 8  # sizes of batches for which CUDA graphs of each are worth their memory
GRAPH_SIZE = 8192 * 5120  # numbers in an activation [B, L, D] above which a GPU takes longer for a kernel than the host
COMPILED = ("static", "dynamic")  # by torch.compile
JOINED_TOKENS = 4096  # of batches that go through the model together: about so many fill the largest GPUs


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a run computes with."""

    info: CheckpointInfo  # of the model's file
    device: torch.device
    dtype: torch.dtype  # of the arithmetic
    modes: tuple[BlockMode, ...]  # how blocks can run here, of those that the job allows: the fastest first
    attention: str = ""  # its kind, by the name that `load_attention` knows; "": PyTorch's own
    is_known: bool = True  # no kind of attention had to be measured
    graphs: bool = False  # CUDA graphs of a step are worth their memory, where a plan allows them
    dropout: bool = False  # the adapter leaves something out at random
    joined: int = 1  # batches of a step that go through the model together
    room: int = 0  # bytes of the device that the plan leaves free, where one was chosen
    warnings: tuple[str, ...] = ()  # what is otherwise than was asked for, a sentence each


def decide(
    job: Job, info: CheckpointInfo, device: torch.device, scratch: Path | None = None, *, context: int = 1
) -> Decision:
    """Find it out for a job on `device`; `info` is of its model file, which was checked. `context` ranks share each sample.

    Takes some seconds where kernels, a compiler or attention have not been tried before. `scratch`: the folder for what may
    be used again and may be deleted, such as compiled code. ConfigError for a precision or an attention that can't be had.
    """
    if needed_by_precision(job.model.precision):  # packages that are hidden until then
        finish_importing_adapters()
    dtype = arithmetic(job.model.precision, device)
    memory, of_context = for_context(job, context)
    joined, of_joined = batches_joined(job, device) if context == 1 else (1, ())
    modes, warnings = _usable_modes(memory, device, scratch)
    if memory.offload_linears and "kernels" not in modes:
        why = warnings[0] if warnings else f"Blocks by kernels run on a GPU, not on the device {device}."
        raise ConfigError(
            f"offload_linears is {memory.offload_linears}, which works with blocks by kernels only. {why} Set offload_linears"
            " to auto."
        )
    if memory.keep_linears and "kernels" not in modes and not ADAPTER_KINDS.get(job.adapter.kind).is_plain:
        raise _products_refused(job, _kernels_problem(device, scratch) or "")
    shape = attention_shape(job, info.config, dtype, device)
    shape = replace(shape, num_heads=max(shape.num_heads // context, 1))
    compiled = any(mode in COMPILED for mode in modes)
    kind, is_known = choose_kind(
        job.memory.attention,
        shape,
        scratch,
        compiled=compiled,
        same_bits=job.memory.deterministic,
        first=finish_importing_adapters,
    )
    return Decision(
        info=info,
        device=device,
        dtype=dtype,
        modes=modes,
        attention=kind,
        is_known=is_known,
        graphs=context == 1 and may_use_graphs(job, info.config, device),
        dropout=job.adapter.is_random,
        joined=joined,
        warnings=(*warnings, *of_context, *of_joined),
    )


def memory_of(job: Job) -> MemoryOptions:
    """The job's memory options; what is left to a planner is settled where the adapter is no plain LoRA.

    Compiled blocks and graphs are made for plain LoRA, and so are kept products, but for blocks by kernels, which keep those
    of every kind. ConfigError where one of them was asked for that can't be.
    """
    memory, kind = job.memory, job.adapter.kind
    if ADAPTER_KINDS.get(kind).is_plain:
        return memory
    if memory.compile in COMPILED:
        raise ConfigError(
            f"compile is {memory.compile}, which works with the adapter lora only, not with {kind}: set it to auto."
        )
    if memory.keep_linears and memory.compile == "off":
        raise _products_refused(job, "compile is off, so that blocks run by PyTorch's own operators.")
    return replace(memory, cuda_graphs="off", compile="kernels" if memory.keep_linears else memory.compile)


def _products_refused(job: Job, why: str) -> ConfigError:
    return ConfigError(
        f"keep_linears is {job.memory.keep_linears}, which works with the adapter lora, and with {job.adapter.kind} only where "
        f"blocks run by kernels: here they do not. {why} Set keep_linears to auto."
    )


def for_context(job: Job, context: int) -> tuple[MemoryOptions, tuple[str, ...]]:
    """The job's memory options where `context` ranks share each sample, and what has to be said of it.

    A compiler would trace the exchange within a block, and a CUDA graph record it; neither is done.
    """
    memory, said = memory_of(job), list[str]()
    if context == 1:
        return memory, ()
    if memory.compile in COMPILED:
        said.append(f"compile is {memory.compile}, but blocks run uncompiled where {context} GPUs share each clip.")
        memory = replace(memory, compile="off")
    if job.adapter.dropout:
        said.append(
            f"With dropout and {context} GPUs that share each clip, other numbers are dropped than on one GPU: the run is as "
            "good, but not the same to the digit."
        )
    return memory, tuple(said)


def arithmetic(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype that a base of this precision computes in. ConfigError for one that the device or a package lacks."""
    # ara computes as all formats do, and cannot be resolved without its file.
    return resolve(AUTO if needs_adapter(precision) else precision, device).dtype


def wanted_modes(memory: MemoryOptions, device: torch.device) -> tuple[BlockMode, ...]:
    """How blocks may run as the option `compile` has it, if everything works: the fastest first."""
    if memory.compile != "auto":
        return (memory.compile,)
    return ("kernels", "off") if device.type == "cuda" else ("off",)


def attention_shape(job: Job, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> AttentionShape:
    """What the job's longest clip attends to."""
    longest = max(num_tokens(sample.shape) for sample in job.training_samples)
    return AttentionShape(longest, sizes.num_heads, sizes.dim // sizes.num_heads, dtype, device)


def may_use_graphs(job: Job, sizes: Sizes, device: torch.device) -> bool:
    """Whether CUDA graphs of steps are worth their memory, which other sizes can't have: all of the job's are small.

    Nor where several forwards wait for their backward at once, of which only the first can be a recorded one; nor where hidden
    states are looked at, which a recorded forward does not give.
    """
    if objective_of(job).passes.most_waiting > 1 or job.crepa.weight:
        return False
    if device.type != "cuda" or memory_of(job).cuda_graphs == "off" or job.adapter.is_random:
        return False
    largest = max(bucket.batch * num_tokens(bucket.shape) for bucket in joined_buckets(job, 1))
    return num_batch_sizes(job) <= GRAPHED_SIZES and largest * sizes.dim <= GRAPH_SIZE


def batches_joined(job: Job, device: torch.device) -> tuple[int, tuple[str, ...]]:
    """How many batches of a step go through the model together, and a sentence where that was asked for and can't be.

    As many as make groups of one size: a divisor of gradient_accumulation. 1: each alone.
    """
    mode, loop = job.memory.join_batches, job.loop
    is_wanted = mode == "on" or (mode == "auto" and device.type == "cuda" and job.memory.plan == "auto")
    if not is_wanted:
        return 1, ()
    shapes = {sample.shape for sample in job.training_samples}
    problem = ""
    if loop.gradient_accumulation == 1:
        problem = f"{label('gradient_accumulation')} is 1, so that a step has one batch"
    elif loop.batch_size > 1:
        problem = f"{label('batch_size')} is {loop.batch_size}, which says how many samples go together"
    elif len(shapes) > 1:
        problem = f"the samples have {len(shapes)} sizes"
    elif job.adapter.is_random:
        problem = "the adapter leaves something out at random"
    if problem:
        return 1, ((f"join_batches has no effect: {problem}.",) if mode == "on" else ())
    most = JOINED_TOKENS // (num_tokens(next(iter(shapes))) * objective_of(job).passes.copies)
    numbers = [number for number in range(1, most + 1) if loop.gradient_accumulation % number == 0]
    return max(numbers, default=1), ()


def joined_buckets(job: Job, joined: int) -> list[Bucket]:
    """`buckets_of`, where so many batches of a step go through the model together, in the copies that the objective takes.

    Batches that take fewer passes than others of their shape are a bucket of their own.
    """
    whole, found = objective_of(job).passes, list[Bucket]()
    for bucket in buckets_of(job):
        batch = bucket.batch * joined
        for passes, share in _kinds_of_batches(job, bucket.shape, batch):
            own = None if passes == whole else passes
            share *= bucket.share / joined
            found.append(replace(bucket, batch=batch * passes.copies, share=share, passes=own))
    return found


def buckets_of(job: Job) -> list[Bucket]:
    """The sizes of the job's samples, with the largest batch of each."""
    found: list[Bucket] = []
    for shape, count in _samples_by_shape(job).items():
        batch = min(job.loop.batch_size, count)
        if job.loop.token_budget:
            batch = max(1, min(batch, job.loop.token_budget // num_tokens(shape)))
        found.append(Bucket(shape, batch, share=count / batch))
    return found


def num_batch_sizes(job: Job) -> int:
    """Different sizes in which the job's batches go through the model.

    Of some shapes the last batch of an epoch is smaller; and where copies of a batch go together, one in which no sample has
    a caption with the class word goes in one copy fewer.
    """
    samples, number = _samples_by_shape(job), 0
    for bucket in buckets_of(job):
        sizes = {bucket.batch, samples[bucket.shape] % bucket.batch} - {0}
        number += len({s * passes.copies for s in sizes for passes, _ in _kinds_of_batches(job, bucket.shape, s)})
    return number


def _kinds_of_batches(job: Job, shape: tuple[int, int, int, int], batch: int) -> Iterator[tuple[Passes, float]]:
    """The passes that batches of one shape, each of so many samples, take, with the share of the batches that take them.

    Output preservation takes none where no sample has a caption with the class word, prior preservation none where no sample is
    of a regularization set.
    """
    chosen = job.regularizers
    if not (chosen.output_preservation or chosen.prior_preservation):
        yield objective_of(job).passes, 1.0
        return
    counts = Counter[tuple[bool, bool]]()  # of samples: with the class word, of a regularization set
    for sample in job.training_samples:
        if sample.shape == shape:
            has_class = bool(chosen.output_preservation and sample.class_texts)
            counts[has_class, chosen.prior_preservation and sample.is_regularization] += sample.repeats
    total, rest = counts.total(), counts[False, False]

    def share_of(number: int) -> Fraction:
        """Of the batches whose samples are all among so many."""
        if batch > total:  # joined, over epochs
            return Fraction(number, total) ** batch
        return Fraction(math.comb(number, batch), math.comb(total, batch))

    neither, without, plain = share_of(rest), share_of(rest + counts[False, True]), share_of(rest + counts[True, False])
    shares = {
        (False, False): neither,
        (False, True): without - neither,
        (True, False): plain - neither,
        (True, True): 1 - without - plain + neither,
    }
    for (has_class, has_prior), share in shares.items():
        if share:
            asked = replace(
                chosen,
                output_preservation=chosen.output_preservation * has_class,
                prior_preservation=chosen.prior_preservation and has_prior,
            )
            yield objective_of(replace(job, regularizers=asked)).passes, float(share)


def _samples_by_shape(job: Job) -> Counter[tuple[int, int, int, int]]:
    samples = Counter[tuple[int, int, int, int]]()
    for sample in job.training_samples:
        samples[sample.shape] += sample.repeats
    return samples


def _usable_modes(
    memory: MemoryOptions, device: torch.device, scratch: Path | None
) -> tuple[tuple[BlockMode, ...], tuple[str, ...]]:
    """The wanted modes that work here, and what has to be said of one that does not: blocks can always run uncompiled."""
    wanted = wanted_modes(memory, device)
    if wanted[0] == "off":
        return wanted, ()
    problem = _kernels_warning(device, scratch) if wanted[0] == "kernels" else _compiler_warning(device, scratch)
    return (wanted, ()) if problem is None else (("off",), (problem,))


def _kernels_problem(device: torch.device, scratch: Path | None) -> str | None:
    from ..kernels.available import kernels_problem

    if scratch is not None:
        use_triton_cache(scratch / "compiled" / "triton")
    return kernels_problem(device)


def _kernels_warning(device: torch.device, scratch: Path | None) -> str | None:
    problem = _kernels_problem(device, scratch)
    if problem is None:
        return None
    return (
        f"{problem} The run goes on by PyTorch's own operators: the result is the same up to rounding, but a step takes a "
        "quarter longer for clips, up to twice as long for pictures, and a block twice the memory."
    )


def _compiler_warning(device: torch.device, scratch: Path | None) -> str | None:
    if scratch is not None:
        use_compile_cache(scratch / "compiled")
    finish_importing_adapters()
    problem = compiler_problem(device)
    if problem is None:
        return None
    return f"{problem} The run goes on without compilation: the result is the same, each step takes longer."
