"""How a run is spread over its ranks: what is checked before, and who does what of a step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from ..errors import ConfigError
from ..objective.objective import objective_of
from ..parallel.agree import Agreement
from ..parallel.deal import batch_cost, check_deal
from ..parallel.reduce import GradientSum, sends_early
from ..parallel.world import World
from ..plan.spread import check_whole_clips
from ..settings.job import Job
from .batches import BatchSchedule
from .crepa import feature_path
from .dealing import Dealing
from .requests import Requests
from .run_plan import RunPlan
from .team import Team

log = logging.getLogger(__name__)


def schedule_of(job: Job) -> BatchSchedule:
    """The batches that the job trains, in their order."""
    with_class = job.regularizers.output_preservation > 0
    turn = 0 if job.turns is None else job.turns.every * job.loop.gradient_accumulation
    return BatchSchedule.of(job.data, job.loop, with_class=with_class, feature_path=feature_path(job), turn=turn)


def check_ranks(job: Job, world: World, *, is_sharded: bool) -> None:
    """ConfigError for a job whose steps can't be spread over the ranks."""
    if world.size == 1:
        return
    check_whole_clips(job, world.context)
    check_deal(job.loop.gradient_accumulation, world.data_size, equal_counts=is_sharded)
    if is_sharded and job.rollout.steps:
        raise ConfigError(
            "with the model spread over the GPUs (base sharded), all GPUs run as many forwards, and rollouts differ from "
            "sample to sample: set rollout_steps to 0, or base to whole."
        )
    if is_sharded and job.regularizers.prior_preservation:
        kinds = {sample.is_regularization for sample in job.training_samples}
        if len(kinds) > 1:
            raise ConfigError(
                "with the model spread over the GPUs (base sharded), all GPUs run as many forwards, and with "
                "prior_preservation only regularization sets have one more: set prior_preservation off, or base to whole."
            )
    if is_sharded and job.regularizers.output_preservation:
        without = [sample for sample in job.training_samples if not sample.class_texts]
        if without:
            raise ConfigError(
                f"with the model spread over the GPUs (base sharded), output_preservation needs a class word for every "
                f"caption, and {without[0].name} has none: set class_word in all datasets, or base to whole."
            )


def team_of(
    job: Job,
    plan: RunPlan,
    parameters: Sequence[torch.nn.Parameter],
    agree: Callable[[bool], bool],
    world: World,
) -> Team | None:
    """Of several ranks, what they do together; None for one."""
    if world.size == 1:
        return None
    objective, sizes, num_batches = objective_of(job), plan.sizes, job.loop.gradient_accumulation
    dealing = Dealing(
        schedule_of(job),
        num_batches,
        rank=world.data_rank,
        ranks=world.data_size,
        cost=partial(batch_cost, dim=sizes.dim, ffn_dim=sizes.ffn_dim),
        equal_counts=plan.is_sharded,
    )
    early = sends_early(sum(parameter.numel() for parameter in parameters), world.size, plan.link)
    when = "during" if early else "after"
    log.info(
        "Gradients are added up %s the backward; %.0f GB/s between the GPUs (0: not known).", when, plan.link / 1e9
    )
    return Team(
        world,
        dealing,
        GradientSum(parameters, world, early=early),
        names=objective.names,
        backwards=objective.passes.order.count("backward"),
        agree=agree,
        most_samples=num_batches * job.loop.batch_size,
        talks_within=plan.talks_within,
    )


def what_is_asked(requests: Mapping[str, Requests], should_stop: Callable[[], bool], world: World) -> Agreement:
    """What a person may ask of the run, in files of its folder, at which the first rank looks. `requests`: by name."""

    def is_there(name: str) -> bool:
        return world.is_first and requests[name].is_there()

    questions = {name: partial(is_there, name) for name in requests}
    return Agreement(world, {"stop": should_stop, **questions})
