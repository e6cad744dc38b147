"""What a run records: run directory, metrics, W&B; and the readers of it."""
