"""`alexnet-exp prepare`: images made ready for training."""
