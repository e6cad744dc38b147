"""`alexnet-exp train`: one run from settings to report."""
