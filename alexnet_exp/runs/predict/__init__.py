"""`alexnet-exp predict`: classify images."""
