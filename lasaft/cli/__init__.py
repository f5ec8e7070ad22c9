"""The ``lasaft`` command."""

from lasaft.cli.commands import main

__all__ = ["main"]
