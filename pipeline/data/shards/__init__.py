"""Spectrograms as they are kept: Arrow files and their manifest."""

# Raised by whoever changes the shards that preprocess makes from the same songs and options.
VERSION = 1
