"""Shards of pictures -> shards of latents."""
