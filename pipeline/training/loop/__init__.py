"""The training loop of one process; it knows no Ray."""
