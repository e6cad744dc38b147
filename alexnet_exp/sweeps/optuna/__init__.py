"""`hydra/sweeper=optuna`: trials as jobs of a sweep."""
