"""Loss on held-out samples at fixed noise and fixed sigmas: comparable from step to step and from run to run."""

from functools import partial

import torch
from torch import Tensor

from ..facts import EXPERTS
from ..flow.objective import sample_noise
from ..flow.sigmas import NUM_SIGMAS, sigma_at
from .batches import load_batch
from .loop import Trainer

VALIDATION_SEED = 20250101  # not the run's: runs with different seeds stay comparable


def validation_loss(trainer: Trainer, *, equal_counts: bool = False) -> tuple[float, list[float], list[float]]:
    """Mean loss over the held-out samples, the mean at each of NUM_SIGMAS sigmas, and that of each sample.

    The sigmas are the midpoints of NUM_SIGMAS equally likely cells of the training distribution, for those that depend on it
    at each sample's own size. Of two experts that share a LoRA each has half of them, in its own window. Several ranks share
    the samples, and all get the result of one. `equal_counts`: each of them runs as many forwards as the others.
    """
    world, count = trainer.team.world, len(trainer.job.held_out_samples)
    own = list(range(world.data_rank, count, world.data_size))
    if equal_counts and len(own) * world.data_size < count:
        own.append(0)  # its loss is not counted here: another rank has it
    losses = trainer.attempt(partial(_losses, trainer, own), trainer.step)
    table = torch.zeros(count, NUM_SIGMAS, device=trainer.device)
    if world.context_rank == 0:  # its neighbours have the same samples
        for number, row in zip(own, losses, strict=True):
            if number % world.data_size == world.data_rank:
                table[number] = row.to(table)
    totals, rows = torch.zeros(NUM_SIGMAS), world.add_(table).cpu()
    for row in rows:  # in the order of the samples: the same sum for any number of ranks
        totals += row
    by_sigma = totals / count
    return by_sigma.mean().item(), by_sigma.tolist(), rows.mean(1).tolist()


def _losses(trainer: Trainer, numbers: list[int]) -> list[Tensor]:
    """Of each of these held-out samples: its losses at the sigmas."""
    job, experts = trainer.job, EXPERTS if trainer.job.stage == "both" else (None,)
    found = [torch.zeros(NUM_SIGMAS) for _ in numbers]
    each = NUM_SIGMAS // len(experts)
    middles = (torch.arange(each) + 0.5) / each
    trainer.model.eval()
    with torch.no_grad():
        for place, expert in enumerate(reversed(experts)):  # the sigmas rise
            trainer.use_expert(expert)
            for number, losses in zip(numbers, found, strict=True):
                sample = job.held_out_samples[number]
                batch = load_batch([sample], [sample.text_path], job.data.conditioning)
                for i, sigma in enumerate(
                    sigma_at(middles, job.timesteps_of(expert), sample.shape).float(), place * each
                ):
                    noise = sample_noise(batch.latents.shape, seed=VALIDATION_SEED, draw=number * NUM_SIGMAS + i)
                    losses[i] = trainer.loss_at(batch, noise, sigma.view(1)).item()
    trainer.model.train()
    return found
