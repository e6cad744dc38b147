"""Chunks on a disk or in object storage, through LitData."""
