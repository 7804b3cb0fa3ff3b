"""The VAE and the text encoder without ComfyUI: the same single-file weights, the same numbers, the same cache keys."""
