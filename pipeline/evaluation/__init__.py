"""Whole songs are separated and scored."""
