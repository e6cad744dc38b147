"""`alexnet-exp benchmark`: speed on this machine."""
