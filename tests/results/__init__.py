"""docs/results.md and the 'Measured:' lines of conf/experiment, written from the records in results/."""
