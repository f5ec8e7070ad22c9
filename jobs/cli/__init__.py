"""Command line and presets to a validated configuration: nothing heavy is imported here."""

from __future__ import annotations

from jobs.cli.command import Command, parse

__all__ = ["Command", "parse"]
