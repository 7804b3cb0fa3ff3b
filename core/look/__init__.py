"""What the model will see of a dataset: its frames and captions, what they cost, and what looks wrong."""
