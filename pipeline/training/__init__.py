"""The training loop: one step, one epoch, validation, state; it knows nothing of Ray."""
