"""Content-addressed caches of latents and prompt embeddings."""
