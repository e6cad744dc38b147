"""Streaming from chunks on disk or in object storage, with LitData."""
