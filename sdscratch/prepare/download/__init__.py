"""Rows with URLs -> shards of pictures."""
