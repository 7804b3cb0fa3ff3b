"""What a run falls back to when memory runs out: a leaner plan, put on the same model between two attempts at a step."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..memory.card import Card, measure_card
from ..memory.estimate import Bucket, Plan, Task
from ..memory.master import streamed_bytes
from ..memory.planner import Choice, Planner, Shortage
from ..memory.sizes import Trained
from ..wan.gguf import QuantizedLinear
from ..wan.model import call_block
from .batches import num_tokens
from .events import EventWriter
from .features import Features, Tell, apply_features
from .job import Job
from .prepare import Prepared
from .recovery import Recovery

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Fallback:
    """Owns the features of a prepared model, which change when memory runs out.

    Nothing is measured or planned before that.
    """

    def __init__(
        self,
        job: Job,
        prepared: Prepared,
        *,
        tell: Tell,
        scratch: Path | None,
        measure: Callable[[torch.device], Card] = measure_card,
    ):
        self._job = job
        self._prepared = prepared
        self._tell = tell
        self._scratch = scratch
        self._measure = measure
        self._features = prepared.features
        self._planner: Planner | None = None

    def recovery(self, optimizer: torch.optim.Optimizer, events: EventWriter) -> Recovery:
        """For `trainer.attempt`."""
        start = Choice(plan_of(self._job, self._prepared.dtype), {}, 0, 0, 0.0)
        return Recovery(start, self, apply=self.apply, optimizer=optimizer, events=events, device=self._prepared.device)

    def step_down(self, failed: Choice, shortage: Shortage) -> Choice | None:
        """A choice that takes less than `failed`, or None."""
        if self._planner is None:
            self._planner = self._make_planner()
        described = failed if failed.estimates else self._planner.describe(failed.plan)
        return self._planner.step_down(described, shortage)

    def apply(self, choice: Choice) -> None:
        """Put the choice on the model in the place of what is there; the kind of attention stays."""
        self.close()
        model, plan = self._prepared.model, asdict(choice.plan)
        model.run_block = call_block
        options = {name: plan[name] for name in asdict(self._job.memory) if name in plan}
        job = replace(self._job, memory=replace(self._job.memory, **options))
        self._features = apply_features(
            model, job, self._prepared.device, tell=self._tell, scratch=self._scratch, again=True
        )

    def close(self) -> None:
        """The model is not called any more, or not before `apply`."""
        self._features.reset()
        self._features.close()
        self._features = Features()

    def _make_planner(self) -> Planner:
        job, model = self._job, self._prepared.model
        is_stored = any(isinstance(module, QuantizedLinear) for module in model.modules())
        task = Task(
            sizes=model.config,
            trained=Trained(
                rank=job.adapter.rank,
                targets=job.adapter.targets,
                dropout=job.adapter.dropout > 0,
                optimizer=job.optimizer.name,
            ),
            element_size=self._prepared.dtype.itemsize,
            stored_block_bytes=max(map(streamed_bytes, model.blocks)) if is_stored else None,
            accumulation=job.loop.gradient_accumulation,
        )
        return Planner(
            task=task,
            buckets=buckets_of(job),
            card=self._measure(self._prepared.device),
            plan=plan_of(job, self._prepared.dtype),
        )


def plan_of(job: Job, dtype: torch.dtype) -> Plan:
    """The job's own memory options as a plan; `dtype` is what its precision came to."""
    precision = job.model.precision
    memory = job.memory
    return Plan(
        precision=_NAMES[dtype] if precision == "auto" else precision,
        checkpointing=memory.checkpointing,
        keep_attention=memory.keep_attention,
        offload_inputs=memory.offload_inputs,
        streamed_blocks=memory.streamed_blocks,
        stream_from=memory.stream_from,
        compile=memory.compile,
    )


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
