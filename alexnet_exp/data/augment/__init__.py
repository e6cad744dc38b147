"""From uint8 batches to floats on the device; every image draws its own parameters."""
