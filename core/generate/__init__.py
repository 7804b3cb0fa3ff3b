"""Videos with the new LoRA, without ComfyUI."""
