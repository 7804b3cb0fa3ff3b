"""Loss on held-out samples at fixed noise and fixed sigmas: comparable from step to step and from run to run."""

import torch

from ..flow.objective import sample_noise
from ..flow.sigmas import sigma_at
from .batches import load_batch
from .loop import Trainer

NUM_SIGMAS = 8
VALIDATION_SEED = 20250101  # not the run's: runs with different seeds stay comparable


def validation_loss(trainer: Trainer) -> tuple[float, list[float]]:
    """Mean loss over the held-out samples, and the mean at each of NUM_SIGMAS sigmas.

    The sigmas are the midpoints of NUM_SIGMAS equally likely cells of the training distribution,
    for those that depend on it at each sample's own size.
    """
    job = trainer.job
    middles = (torch.arange(NUM_SIGMAS) + 0.5) / NUM_SIGMAS
    totals = torch.zeros(NUM_SIGMAS)
    trainer.model.eval()
    with torch.no_grad():
        for number, sample in enumerate(job.held_out_samples):
            batch = load_batch([sample], [sample.text_path], job.data.conditioning)
            for i, sigma in enumerate(sigma_at(middles, job.timesteps, sample.shape).float()):
                noise = sample_noise(batch.latents.shape, seed=VALIDATION_SEED, draw=number * NUM_SIGMAS + i)
                totals[i] += trainer.loss_at(batch, noise, sigma.view(1)).item()
    trainer.model.train()
    by_sigma = totals / len(job.held_out_samples)
    return by_sigma.mean().item(), by_sigma.tolist()
