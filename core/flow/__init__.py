"""Flow matching: sigmas, noise, target, loss."""
