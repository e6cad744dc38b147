"""`alexnet-exp figures`: what a network has learned."""
