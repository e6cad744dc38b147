"""`alexnet-exp dashboard`: create a W&B workspace and report."""
