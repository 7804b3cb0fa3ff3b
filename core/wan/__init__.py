"""The Wan video transformer: configuration, model, and reading of its checkpoints."""
