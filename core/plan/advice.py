"""A plan in one line, and, where none fits, what would."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..facts import PATCH, clip_size, num_frames
from ..memory.precision import precision_kind
from ..settings.memory import MemoryOptions
from ..settings.plain import chosen
from ..words import counted
from .choice import Choice
from .plan import Bucket
from .planner import Planner
from .sizes import num_params
from .words import label, told

GIB = 2**30
LEAST_TOLD = 1.0  # seconds, of what a run does beside its steps


def clip_name(shape: tuple[int, int, int, int]) -> str:
    """Latents (C, F, H, W) as a clip in pixels, "832x480x33": 8 pixels a latent one, 16 with Wan 2.2's VAE."""
    frames, height, width = clip_size(shape)
    return f"{width}x{height}x{frames}"


def explain(planner: Planner, choice: Choice, *, steps: int) -> str:
    """The plan in one line: "14B fp8, 832x480x33: 7.1 of 8.0 GB, about 9 s a step, block swap of 38 of 40 blocks, ..."."""
    sizes, plan = planner.task.sizes, choice.plan
    parts = [memory_taken(planner, choice), f"about {_seconds(choice.seconds)} a step{_sharing(planner)}"]
    parts += told(plan, sizes.num_layers)
    parts += ["deterministic"] if planner.options.deterministic else []
    if plan.streamed_blocks or plan.offload_inputs or plan.offload_optimizer or plan.offload_linears:
        parts.append(f"{choice.ram / GIB:.0f} GB of main memory")
    return ", ".join([*parts, _whole_time(planner, choice, steps)])


def memory_taken(planner: Planner, choice: Choice) -> str:
    """The model, its largest clip, and its memory: "14B fp8, 832x480x33: 7.1 of 8.0 GB"."""
    largest, overhead = _largest(choice), planner.card.overhead
    return (
        f"{_count(num_params(planner.task.sizes))} {choice.plan.precision}, {clip_name(largest.shape)}: "
        f"{(choice.vram + overhead) / GIB:.1f} of {(planner.card.free + overhead) / GIB:.1f} GB"
    )


def _sharing(planner: Planner) -> str:
    context = planner.task.gpus.context
    return f", of which {context} GPUs share each clip" if context > 1 else ""


def _whole_time(planner: Planner, choice: Choice, steps: int) -> str:
    """ "about 1 min 10 s in all for 100 steps: start 15 s, first step of 3 sizes 12 s, steps 43 s, validation 3 s"."""
    if not planner.steps:
        return f"{_duration(choice.seconds * steps)} for {counted(steps, 'step')}"
    parts = {
        "start": choice.start_seconds,
        f"first step of {'the size' if len(choice.sizes) == 1 else f'{len(choice.sizes)} sizes'}": choice.sizes_seconds,
        "steps": choice.seconds * steps,
    }
    if choice.switch_every:
        parts[_switching(planner, choice)] = choice.all_switches(steps)
    beside = choice.beside
    more = {"validation": beside.validations, "previews": beside.previews, "checkpoints": beside.checkpoints}
    parts |= {name: one.total for name, one in more.items() if one.total >= LEAST_TOLD}
    said = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts.items())
    return f"about {_duration(choice.run_seconds(steps))} in all for {counted(steps, 'step')}: {said}"


def _switching(planner: Planner, choice: Choice) -> str:
    """ "switching every 10 steps, 3 s each and 5 % of the time, ..." """
    share = choice.switch_seconds / (choice.switch_seconds + choice.switch_every * choice.seconds)
    where = "with both experts' weights on the GPU, " if planner.keeps_weights else ""
    every = "step" if choice.switch_every == 1 else f"{choice.switch_every} steps"
    return f"switching every {every}, {where}{_seconds(choice.switch_seconds)} each and {share:.0%} of the time,"


def what_would_fit(planner: Planner) -> str:
    """Sentences for a planner that chooses nothing: what the leanest plan lacks, and each change that alone would do."""
    limits, leanest, overhead = planner.limits(), planner.leanest(), planner.card.overhead
    largest = _largest(leanest)
    said = [
        f"{clip_name(largest.shape)} does not fit: the leanest plan takes {(leanest.vram + overhead) / GIB:.1f} GB of the "
        f"GPU's memory, of which {max(limits.vram + overhead, 0) / GIB:.1f} GB can be used"
    ]
    if leanest.ram > limits.ram:
        said.append(f"and {leanest.ram / GIB:.0f} GB of main memory, of {max(limits.ram, 0) / GIB:.0f} GB")
    changes = [
        change
        for find in (_more_sharing, _without_choices, _fewer_frames, _smaller_side, _smaller_batch, _lower_precision)
        for change in find(planner)
    ]
    advice = f"It would with {'; or with '.join(changes)}." if changes else "No single change of the clips would do."
    return f"{' '.join(said)}. {advice}"


def _largest(choice: Choice) -> Bucket:
    return max(choice.estimates, key=lambda bucket: choice.estimates[bucket].vram)


def _with_shapes(planner: Planner, limit: tuple[int, int, int]) -> Planner:
    """With all buckets cut to at most `limit` (F, H, W)."""
    buckets: list[Bucket] = []
    for bucket in planner.buckets:
        channels, *size = bucket.shape
        frames, height, width = map(min, size, limit)
        buckets.append(replace(bucket, shape=(channels, frames, height, width)))
    return replace(planner, buckets=buckets)


def _more_sharing(planner: Planner) -> Iterator[str]:
    gpus = planner.task.gpus
    for context in range(gpus.context + 1, gpus.count + 1):
        if gpus.count % context == 0 and planner.task.sizes.num_heads % context == 0:
            shared = replace(planner.task, gpus=replace(gpus, context=context), graphs=False)
            if replace(planner, task=shared).fits():
                yield f"{label('context')} {context}"
                return


def _without_choices(planner: Planner) -> Iterator[str]:
    names = [label(name) for name in chosen(planner.options)]
    if names and replace(planner, options=MemoryOptions()).fits():
        yield f"{' and '.join(names)} left at auto"


def _fewer_frames(planner: Planner) -> Iterator[str]:
    frames = max(bucket.shape[1] for bucket in planner.buckets)
    side = max(max(bucket.shape[2:]) for bucket in planner.buckets)
    found = _most(1, frames - 1, lambda count: _with_shapes(planner, (count, side, side)).fits())
    if found:
        yield (f"at most {counted(num_frames(found), 'frame')} instead of {num_frames(frames)}")


def _smaller_side(planner: Planner) -> Iterator[str]:
    """All sizes scaled alike, to whole tokens."""
    largest = _largest(planner.leanest())
    _, frames, height, width = largest.shape

    def scaled(percent: int) -> tuple[int, int]:
        return tuple(max(math.floor(side * percent / 100 / PATCH), 1) * PATCH for side in (height, width))  # type: ignore[return-value]

    def fits(percent: int) -> bool:
        return _with_shapes(planner, (frames, *scaled(percent))).fits()

    found = _most(20, 99, fits)
    if found:
        yield f"a size of {clip_name((largest.shape[0], frames, *scaled(found)))}"


def _smaller_batch(planner: Planner) -> Iterator[str]:
    copies = [(bucket.passes or planner.task.passes).copies for bucket in planner.buckets]  # of each sample
    alone = [replace(bucket, batch=number) for bucket, number in zip(planner.buckets, copies, strict=True)]
    if alone != list(planner.buckets) and replace(planner, buckets=alone).fits():
        yield f"{label('batch_size')} 1"


def _lower_precision(planner: Planner) -> Iterator[str]:
    precision, old = planner.plan.precision, planner.leanest().vram
    while planner.task.stored_block_bytes is None and (precision := precision_kind(precision).lower):
        lower = replace(planner, plan=replace(planner.plan, precision=precision))
        if lower.fits():
            yield f"the precision {precision}, which takes {(old - lower.leanest().vram) / GIB:.1f} GB less"
            return


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from `low` to `high` that `fits`, 0 if none does; what fits a number fits all below."""
    if high < low or not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _count(number: int) -> str:
    unit, name = (1e9, "B") if number >= 1e8 else (1e6, "M")
    return f"{number / unit:.1f}{name}".replace(f".0{name}", name)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.2g} s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h".replace(".0 h", " h")
