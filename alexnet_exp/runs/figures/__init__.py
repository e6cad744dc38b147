"""`alexnet-exp figures`: visualise what a network has learned."""
