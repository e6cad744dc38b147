"""`alexnet-exp prepare`: prepare images for training."""
