"""The network's form for inference: the same numbers in less time."""
