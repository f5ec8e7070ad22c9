"""Separation of whole songs: cut into chunks, separated, joined, written as stems."""

from lasaft.separation.separator import Separator

__all__ = ["Separator"]
