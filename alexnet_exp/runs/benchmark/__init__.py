"""`alexnet-exp benchmark`: measure speed on this machine."""
