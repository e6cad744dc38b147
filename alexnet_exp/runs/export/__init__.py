"""`alexnet-exp export`: a network for another runtime."""
