"""Whole songs are cut into chunks, separated, joined, and written as stems."""

from lasaft.separation.separator import Separator

__all__ = ["Separator"]
