"""Checkpoints: writing, reading, comparing with the data at hand, starting and resuming from them."""
