"""Checkpoints: writing, reading, comparing with the current data, starting and resuming runs."""
