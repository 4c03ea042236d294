"""Metadata rows -> the rows that rules keep."""
