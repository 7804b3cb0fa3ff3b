"""Transforms that trade memory for time, applied in one place (`core.train.prepare`)."""
