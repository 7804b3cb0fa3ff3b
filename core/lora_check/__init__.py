"""Why a LoRA has no effect, or not the one that it should have: its file, its base, and what a workflow does with it."""
