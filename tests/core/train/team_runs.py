"""What ranks do in the tests of runs over several of them: functions that each rank runs, with its world."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from wan_train.core.objective.objective import objective_of
from wan_train.core.parallel.reduce import GradientSum
from wan_train.core.train import run as run_module
from wan_train.core.train.average import averages_of
from wan_train.core.train.dealing import Dealing
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.loop import Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import prepare
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.silent import Silent
from wan_train.core.train.team import Team
from wan_train.core.train.together import schedule_of
from wan_train.tests.core.train.helpers import Direct

CPU = torch.device("cpu")


def digest(tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def team_trainer(world, job, *, scratch=None, cost=lambda tokens, count: tokens * count, equal_counts=False):
    """As a run makes it, without a folder but `scratch`; alone for a world of one."""
    prepared = prepare(job, CPU, scratch=scratch, world=world)
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    team = None
    if world.size > 1:
        dealing = Dealing(
            schedule_of(job),
            job.loop.gradient_accumulation,
            rank=world.data_rank,
            ranks=world.data_size,
            cost=cost,
            equal_counts=equal_counts,
        )
        objective = objective_of(job)
        team = Team(
            world,
            dealing,
            GradientSum(prepared.parameters, world),
            names=objective.names,
            backwards=objective.passes.order.count("backward"),
            agree=lambda ready: bool(world.most(int(ready))[0]),
            most_samples=job.loop.gradient_accumulation * job.loop.batch_size,
        )
    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=optimizer,
        batches=Direct(job),
        team=team,
    )
    averages = averages_of(job, prepared.model, prepared.parameters, optimizer)
    trainer.after_update += [] if averages.ema is None else [averages.ema]
    prepared.model.train()
    return trainer, averages, prepared


def steps(world, job, count, scratch=None):
    """Of some steps: gradients at the update, reports, a hash of the weights, and the average's."""
    equal_counts = job.parallel.base == "sharded"
    trainer, averages, prepared = team_trainer(world, job, scratch=scratch, equal_counts=equal_counts)
    gradients, step = [], trainer.optimizer.step

    def spy():
        gradients.append([p.grad.tolist() for p in trainer.parameters])
        step()

    trainer.optimizer.step = spy
    reports = []
    for _ in range(count):
        report = trainer.team.watched(trainer.train_step)().read()
        reports.append((report.loss, report.grad_norm, report.sigma, report.tokens, dict(report.terms)))
    average = digest(averages.ema._averages) if averages.ema else ""
    prepared.features.reset()
    prepared.features.close()
    return gradients, reports, digest(trainer.parameters), average


def places(world, job):
    """Where the others see a rank: within the second step, at its sum, and after it."""
    trainer, _, prepared = team_trainer(world, job, equal_counts=job.parallel.base == "sharded")
    trainer.team.watched(trainer.train_step)().read()
    finish, found = trainer.team._sum.finish, []

    def watched_finish():
        found.append(world.progress.place())
        finish()

    trainer.team._sum.finish = watched_finish
    trainer.team.watched(trainer.train_step)()
    prepared.features.reset()
    prepared.features.close()
    return *found, world.progress.place()


def run(world, path, stop_at=0, job=None):
    """A whole run in its folder, as a worker has it; (how it ended, hash of the weights of this rank)."""
    folder, found = RunFolder(Path(path)), {}
    save_lora = run_module.save_lora

    def watched(folder, job, prepared, averages, **options):
        found["weights"] = digest(prepared.parameters)
        return save_lora(folder, job, prepared, averages, **options)

    def should_stop():
        if not (stop_at and world.is_first):
            return False
        events = EventReader(folder.events_path).stream()
        return max((e["step"] for e in events if e["event"] == "step"), default=0) >= stop_at

    run_module.save_lora = watched
    try:
        events = (EventWriter if world.is_first else Silent)(folder.events_path)
        run_job(folder, events, CPU, should_stop, world=world)
        ended = "finished"
    except RunStoppedError:
        ended = "stopped"
    finally:
        run_module.save_lora = save_lora
    return ended, found.get("weights")


def folder_of(tmp_path, name, job):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    return folder


def told(folder, kind):
    return [event for event in EventReader(folder.events_path).read() if event["event"] == kind]


def losses(folder):
    return {event["step"]: event["loss"] for event in told(folder, "step")}


def lora(folder, steps):
    return load_file(folder.finished_lora(steps))


def spread(job, num_batches, **changes):
    return replace(job, loop=replace(job.loop, gradient_accumulation=num_batches, **changes))
