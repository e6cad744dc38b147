"""`alexnet-exp predict`: what is in images."""
