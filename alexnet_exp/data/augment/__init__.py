"""Augmentation and normalisation of uint8 batches on the device; every image draws its own parameters."""
