"""Separation of whole songs: cut into chunks, separated, joined, written as stems."""
