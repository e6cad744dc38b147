"""Settings: where they lie, how they are composed, what they may be. Nothing here imports torch."""
