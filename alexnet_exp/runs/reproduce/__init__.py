"""`alexnet-exp reproduce`: published results, run again with several seeds."""
