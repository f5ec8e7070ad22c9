"""Training: Ray Train around a loop that knows no Ray."""

# Raised by whoever changes what a training makes of the same shards and options.
VERSION = 1
