"""Seeded songs in the shape of MUSDB18: made-up music with voice, drums, bass and the rest."""

# Raised by whoever changes the samples that the same parameters give.
VERSION = 1
