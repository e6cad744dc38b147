"""`alexnet-exp evaluate`: how good a network is."""
