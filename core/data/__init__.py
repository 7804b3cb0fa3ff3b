"""From a folder of images and clips to latents and text embeddings on disk."""
