"""Spectrograms as they are kept: Arrow files and their manifest."""
