"""What stands behind `-m`: every job of a sweep is its own process running the plain single-run command line."""
