"""The training run: job, loop, optimizer, state, events, and the folder they live in."""
