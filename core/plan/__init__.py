"""What a run will need and how the model is held for it: card, sizes, estimate, planner, advice, measuring, recovery."""
