"""What a run takes beside its steady steps: its start, and the first step of each size. Seconds.

The numbers are those of the 14B model on an H100 (fp8 files in the page cache); what a machine has shown itself in runs
before takes their place.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .beside import BesideSteps, usual
from .kept import read_kept, write_kept
from .plan import Plan

# From the process's start to the first step, without reading the model: imports, the GPU's context, the adapter.
# On an H200, with 14 GB of fp8 weights, it took 12 to 15 s (18 s inside a ComfyUI that was starting two trainings), 19 to 21 s
# where the device was new, and there 22 and 28 s with all blocks swapped. By these numbers that is 14, 20 and 26 s.
START = 9.2
PROBE = 6.0  # more where the device has not been measured yet
READ_RATE = 3e9  # bytes of model files a second, onto the device in the form that they are held in
PIN_RATE = (
    2.4e9  # bytes of swapped blocks a second that are brought into pinned memory besides: 14 GB took 6 s on an H200
)
END = 1.0  # the LoRA's file, and the checkpoint of the last step
GRAPH = 0.5  # to record the CUDA graphs of one size
# More than a steady step, by how blocks are compiled: once in a run, and for each kind of block at each size. What the
# compiler made before is found again where it is kept.
ONCE = {"off": 1.0, "kernels": 2.0, "static": 8.0, "dynamic": 100.0}
KIND = {"off": 0.1, "kernels": 0.2, "static": 12.0, "dynamic": 0.5}
KIND_AGAIN = {"static": 6.0, "dynamic": 0.5}
_OTHER = "off"  # what a way to compile that is not named here is taken for
_FACTORS = (0.1, 10.0)  # measured over the numbers above; what is beyond is a measurement of something else


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """What is known of a machine and of a run on it."""

    file_bytes: int = 0  # of the model
    is_probed: bool = True  # the device has been measured before
    start: float = 1.0  # times what is assumed of the start
    end: float = 1.0  # times what is assumed of the end
    validation: float = 1.0  # times what is assumed of one, and of a preview
    preview: float = 1.0
    kinds: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # times what is assumed of a kind, by way to compile
    compiled: Collection[str] = ()  # keys of what was compiled before; see `key`

    def start_seconds(self, pinned: int = 0) -> float:
        """To the first step, and from the last one to the LoRA; with `pinned` bytes of swapped blocks."""
        return self.start * self.assumed_start(pinned) + self.end * END

    def assumed_start(self, pinned: int = 0) -> float:
        """To the first step, for what the machine has not shown yet."""
        return assumed_start(self.file_bytes, is_probed=self.is_probed, pinned=pinned)

    def size_seconds(self, compile: str, kinds: Collection[str]) -> float:
        """How much longer the first step of a size takes than a later one; `kinds`: keys of its kinds of block."""
        factor = self.kinds.get(compile, 1.0)
        return factor * sum(assumed_kind(compile, again=kind in self.compiled) for kind in kinds)

    def once_seconds(self, compile: str) -> float:
        """How much longer the very first step takes than the first step of any other size."""
        return ONCE.get(compile, ONCE[_OTHER])


def assumed_start(file_bytes: int, *, is_probed: bool, pinned: int = 0) -> float:
    """From the process's start to the first step. `pinned`: bytes of swapped blocks in pinned memory."""
    return START + (0.0 if is_probed else PROBE) + file_bytes / READ_RATE + pinned / PIN_RATE


def assumed_kind(compile: str, *, again: bool) -> float:
    """Of one kind of block at a size that is new; `again`: it was compiled in a run before."""
    first = KIND.get(compile, KIND[_OTHER])
    return KIND_AGAIN.get(compile, first) if again else first


def kinds_of_block(plan: Plan, num_layers: int) -> list[str]:
    """The kinds of block that are compiled for a size: by what they keep, and their parts."""
    if plan.split_blocks:
        kept = (
            {"kept"}
            if plan.keep_attention == num_layers
            else {"plain"}
            if not plan.keep_attention
            else {"kept", "plain"}
        )
        return [*(f"attention {each}" for each in sorted(kept)), "cross", "feed-forward"]
    if not plan.checkpointing:
        return ["nothing again"]
    linears = plan.keep_linears + plan.offload_linears
    attention = max(plan.keep_attention, linears)
    numbers = {"linears": linears, "attention": attention - linears, "plain": num_layers - attention}
    return [f"{name} in {plan.ffn_pieces}" for name, number in numbers.items() if number]


def key(plan: Plan, tokens: int, kind: str) -> str:
    """Of a kind of block at a size, in what is kept of machines."""
    return f"{plan.precision}; {plan.compile}; {tokens}; {kind}"


def read_costs(path: Path, version: str) -> RunCosts:
    """What runs before have shown; nothing where there is nothing of this `version`, or damage."""
    try:
        found = read_kept(path, version)
        kinds = {str(name): _limited(float(factor)) for name, factor in found["kinds"].items()}
        start, end = (_limited(float(found[name])) for name in ("start", "end"))
        # Files of before do not have them.
        validation, preview = (_limited(float(found.get(name, 1.0))) for name in ("validation", "preview"))
        return RunCosts(
            start=start,
            end=end,
            validation=validation,
            preview=preview,
            kinds=kinds,
            compiled=tuple(map(str, found["compiled"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return RunCosts()


def write_costs(path: Path, version: str, costs: RunCosts) -> None:
    """Keep them for the next run. RunError if the folder cannot be written."""
    content = asdict(costs)
    kept = {
        "start": content["start"],
        "end": content["end"],
        "validation": content["validation"],
        "preview": content["preview"],
        "kinds": content["kinds"],
        "compiled": sorted(costs.compiled),
    }
    write_kept(path, version, kept)


def learnt(
    costs: RunCosts,
    *,
    start: float | None,
    compile: str,
    extras: Collection[tuple[float, float]],
    keys: Collection[str],
    pinned: int = 0,
) -> RunCosts:
    """`costs` after a run, whose start took `start` seconds, with `pinned` bytes of swapped blocks.

    `extras`: of first steps, seconds beyond a steady one, as they were and as they are assumed.
    """
    if start is not None:
        costs = replace(costs, start=_limited(start / costs.assumed_start(pinned)))
    assumed = sum(expected for _, expected in extras)
    if assumed:
        factor = _limited(max(sum(measured for measured, _ in extras), 0.0) / assumed)
        costs = replace(costs, kinds={**costs.kinds, compile: factor})
    return replace(costs, compiled=tuple(sorted({*costs.compiled, *keys})))


def learnt_end(costs: RunCosts, seconds: float) -> RunCosts:
    """`costs` after a run that had its LoRA `seconds` after its last step."""
    return replace(costs, end=_limited(seconds / END))


def learnt_beside(
    costs: RunCosts, expected: BesideSteps, known: RunCosts, *, validations: Sequence[float], previews: Sequence[float]
) -> RunCosts:
    """`costs` after a run in which each took so many seconds, where one was `expected` by what was `known` before."""
    for name, measured, one in (
        ("validation", validations, expected.validations),
        ("preview", previews, expected.previews),
    ):
        if measured and one.seconds:
            factor = getattr(known, name) * usual(measured) / one.seconds
            costs = replace(costs, **{name: _limited(factor)})
    return costs


def _limited(factor: float) -> float:
    return min(max(factor, _FACTORS[0]), _FACTORS[1])
