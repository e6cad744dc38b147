"""One process per device, however it was started, and the signals that end a run."""
