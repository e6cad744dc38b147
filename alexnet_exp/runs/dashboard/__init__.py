"""`alexnet-exp dashboard`: a W&B workspace and a report."""
