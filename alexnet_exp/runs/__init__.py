"""One file per verb of `alexnet-exp`."""
