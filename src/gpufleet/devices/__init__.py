"""The GPUs of one node."""
