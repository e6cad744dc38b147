"""The W&B run of a run directory."""
