"""Whole songs are separated and scored."""

# Raised by whoever changes what separating and scoring give for the same checkpoint and songs.
VERSION = 3
# What later versions gave more than this one are metrics of whole songs: its scores are kept.
SCORES_SINCE = 2
