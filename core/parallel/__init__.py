"""One run over several GPUs: torch.distributed, and what of a step each process does."""
