"""`alexnet-exp export`: convert a network for another runtime."""
