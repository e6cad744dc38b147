"""`alexnet-exp compare`: runs side by side."""
