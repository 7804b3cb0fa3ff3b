"""What a training step minimises: terms, the forwards that they ask for, and what these are for the planner."""
