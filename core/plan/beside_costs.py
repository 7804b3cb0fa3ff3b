"""What validations, previews and checkpoints take under a plan: see `beside`."""

from dataclasses import dataclass, replace
from functools import cached_property

from ..facts import num_tokens
from .beside import BesideSteps, ForwardCounts, Interlude, Shape, WorkBeside, bytes_to_stay
from .card import Card
from .plan import Bucket, Plan, Task, way_of
from .run_costs import READ_RATE, RunCosts
from .sizes import adapter_params, average_bytes, num_params, optimizer_bytes
from .step_time import BlockTime, block_seconds, forward_seconds

# Bytes a second of a model file that is read for each sampling step of a preview: on an H200, 14 GB took 3.1 to 3.4 s.
READ_AGAIN = 4.4e9
# Of a picture of 960x960: ComfyUI had it decoded 2 s after it was sampled, and the run waits for that. Most of it is to get
# the VAE onto the GPU. That many pixels take longer is assumed.
DECODE, DECODE_PIXELS = 1.8, 6e6  # seconds of a preview, and pixels a second
CHECKPOINT_RATE = 0.6e9  # bytes a second: a LoRA of rank 16 of the 14B model, with AdamW's state, took 1.4 to 1.7 s


@dataclass(frozen=True)
class BesideCosts:
    """For one task on one card; what does not depend on the plan is worked out once."""

    task: Task
    card: Card

    def beside(
        self, work: WorkBeside, plan: Plan, costs: RunCosts, *, factor: float, free: int, change: float
    ) -> BesideSteps:
        """Of a run under `plan`. `factor`: by how much forwards are known to take longer. `free`: bytes of the device beside
        what is held between steps. `change`: seconds to bring another expert into the model."""
        every = self._whole(work.validation, plan, factor) + work.validation_changes * change
        shown = self._whole(work.preview, plan, factor) + work.preview_changes * change
        shown += self._read_seconds(work, free) + work.pixels / DECODE_PIXELS + DECODE
        rhythms = work.rhythms
        return BesideSteps(
            validations=Interlude(rhythms.validations.after(-1), costs.validation * every),
            previews=Interlude(rhythms.previews.after(-1), costs.preview * shown),
            checkpoints=Interlude(rhythms.checkpoints.after(-1), self._checkpoint),
        )

    def _whole(self, forwards: ForwardCounts, plan: Plan, factor: float) -> float:
        """No forward of these leaves tokens out."""
        task = self._all_tokens
        return factor * sum(number * self._forward(task, plan, shape) for shape, number in forwards.items())

    def _read_seconds(self, work: WorkBeside, free: int) -> float:
        """Of models that are read from their files, in the compute dtype by then, and of their forwards."""
        if not work.reads:
            return 0.0
        task = replace(self._all_tokens, stored_block_bytes=None)
        plan = Plan(precision="fp32" if task.element_size > 2 else "bf16")
        forwards = sum(number * self._forward(task, plan, shape) for shape, number in work.from_files.items())
        num_bytes = len(work.reads) * num_params(task.sizes) * task.element_size
        tokens = max(map(num_tokens, work.from_files), default=0)
        if bytes_to_stay(num_bytes, tokens, task.sizes.dim, task.element_size) <= free:
            return forwards + sum(read.file_bytes for read in work.reads) / READ_RATE
        return forwards + sum(read.times * read.file_bytes for read in work.reads) / READ_AGAIN

    def _forward(self, task: Task, plan: Plan, shape: Shape) -> float:
        bucket, known = Bucket(shape), (way_of(task, plan), shape, task.stored_block_bytes)
        if known not in self._blocks:
            self._blocks[known] = block_seconds(task, bucket, plan, self.card)
        return forward_seconds(task, bucket, plan, self.card, self._blocks[known])

    @cached_property
    def _all_tokens(self) -> Task:
        return replace(self.task, seen=())

    @cached_property
    def _blocks(self) -> dict[tuple[Plan, Shape, int | None], BlockTime]:
        return {}

    @cached_property
    def _checkpoint(self) -> float:
        sizes, trained = self.task.sizes, self.task.trained
        held = 4 * adapter_params(sizes, trained) + average_bytes(sizes, trained) + optimizer_bytes(sizes, trained)
        return held / CHECKPOINT_RATE
