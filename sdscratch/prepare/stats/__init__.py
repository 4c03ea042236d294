"""A page about a folder of shards."""
