"""Checkpoints of the authors' own code, read without running any of it."""
