"""Settings: composing them, the legal values, error messages. Nothing here imports torch."""
