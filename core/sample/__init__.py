"""Sampling: videos' latents from noise and text, as ComfyUI makes them."""
