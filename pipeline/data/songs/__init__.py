"""Songs as they come in: found, split, checked, read."""
